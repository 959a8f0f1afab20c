-- What the example keeps besides Mailroom's accounts and tokens, in a schema of its own.
-- A real application has its own table of users, or adds columns to accounts.

CREATE SCHEMA IF NOT EXISTS example;

-- A session holds the stamp: a new stamp ends all sessions.
CREATE TABLE IF NOT EXISTS example.passwords (
    account bigint PRIMARY KEY REFERENCES public.accounts ON DELETE CASCADE,
    hash    text   NOT NULL,
    stamp   uuid   NOT NULL DEFAULT gen_random_uuid()
);

-- Logins that were asked for, whether an account came of it or not. Were a login free again when the
-- address was known, asking for it a second time would tell whether the address was.
CREATE TABLE IF NOT EXISTS example.logins (login text PRIMARY KEY);
