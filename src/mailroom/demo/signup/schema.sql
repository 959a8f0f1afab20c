-- The example's own tables, beside Mailroom's accounts and tokens.
-- A real application has its own table of users, or adds columns to accounts.

CREATE SCHEMA IF NOT EXISTS example;

-- Each session holds the stamp, so a new stamp ends all sessions. Without a hash there is no password yet: the
-- account came from elsewhere, and its user signed in with a link.
CREATE TABLE IF NOT EXISTS example.passwords (
    account bigint PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    hash    text,
    stamp   uuid   NOT NULL DEFAULT gen_random_uuid(),
    set_at  timestamptz NOT NULL DEFAULT statement_timestamp()
);

-- All logins that were asked for. If a login stayed free when its address was known, asking for it again
-- would reveal that the address has an account.
CREATE TABLE IF NOT EXISTS example.logins (login text PRIMARY KEY);

-- Sign-ups of the last day, by an id in the visitor's cookie. If the mail bounces, the visitor may correct the address. The
-- row is the same for a known address, for which no account was made.
CREATE TABLE IF NOT EXISTS example.sign_ups (
    id     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    login  text NOT NULL,
    email  text NOT NULL,
    locale text NOT NULL,
    hash   text NOT NULL,
    at     timestamptz NOT NULL DEFAULT statement_timestamp()
);
