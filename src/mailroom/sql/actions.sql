-- Actions: the kinds of mail. `mailroom actions apply` writes a value of the type and a row here.

CREATE TYPE token_action AS ENUM ('activation', 'password_recovery');

-- In this order mails leave the queue.
CREATE TYPE mailroom.lane AS ENUM ('urgent', 'normal', 'bulk');

CREATE TABLE mailroom.actions (
    action         token_action PRIMARY KEY,
    number         smallint      NOT NULL,
    prefix         text          NOT NULL,
    account_status account_status,
    has_link       boolean       NOT NULL DEFAULT true,
    needs_code     boolean       NOT NULL DEFAULT false,
    lifetime       interval      NOT NULL DEFAULT '15 minutes',
    fields         text[]        NOT NULL DEFAULT '{}',
    lane           mailroom.lane NOT NULL DEFAULT 'normal',
    limit_mails    integer,
    limit_within   interval,
    renews         boolean       NOT NULL DEFAULT false,
    activates      boolean       NOT NULL DEFAULT false,
    paused_at      timestamptz,
    pause_reason   text,
    resumed_at     timestamptz,
    CONSTRAINT actions_number   CHECK (number BETWEEN 1 AND 99),
    CONSTRAINT actions_prefix   CHECK (prefix ~ '^/[!-~]{1,62}$'),
    CONSTRAINT actions_lifetime CHECK (lifetime > '0'),
    CONSTRAINT actions_fields   CHECK (pg_catalog.array_position(fields, NULL) IS NULL
                                       AND NOT (activates AND fields OPERATOR(pg_catalog.<>) '{}')),
    CONSTRAINT actions_limit    CHECK ((limit_mails IS NULL) = (limit_within IS NULL)
                                       AND limit_mails > 0 AND limit_within > '0')
);
CREATE UNIQUE INDEX actions_number_key ON mailroom.actions (number);
CREATE UNIQUE INDEX actions_prefix_key ON mailroom.actions (prefix);
CREATE UNIQUE INDEX actions_activates_key ON mailroom.actions (activates) WHERE activates;

INSERT INTO mailroom.actions (action, number, prefix, account_status, needs_code, lane, limit_mails, limit_within,
                              renews, activates)
VALUES ('activation', 1, '/activate', 'provisioned', false, 'normal', NULL, NULL, true, true),
       ('password_recovery', 2, '/recover', 'active', true, 'urgent', 5, '15 minutes', false, false);

COMMENT ON TABLE mailroom.actions IS
    'The kinds of mail: for each value of the type token_action, how its tokens are signed, handed out and '
    'consumed. `mailroom actions apply` writes it.';
COMMENT ON COLUMN mailroom.actions.action IS 'The action.';
COMMENT ON COLUMN mailroom.actions.number IS 'Its number on the line, which never changes.';
COMMENT ON COLUMN mailroom.actions.prefix IS
    'What the signature of its tokens begins with, which never changes; none begins another.';
COMMENT ON COLUMN mailroom.actions.account_status IS
    'The status that an account must have to be mailed and to consume the token. NULL: the mail is for anybody, and '
    'an account, if there is one, must not be suspended.';
COMMENT ON COLUMN mailroom.actions.has_link IS 'Whether the mail has a link with the signed token.';
COMMENT ON COLUMN mailroom.actions.needs_code IS
    'Whether the mail has a code, which consuming the token requires. An action without link and code is a notice.';
COMMENT ON COLUMN mailroom.actions.lifetime IS 'How long a token is valid, unless expires_at says otherwise.';
COMMENT ON COLUMN mailroom.actions.fields IS 'The names of the fields that tokens.data has to have.';
COMMENT ON COLUMN mailroom.actions.lane IS
    'Where its tokens wait: urgent goes out before normal, and normal before bulk.';
COMMENT ON COLUMN mailroom.actions.limit_mails IS
    'The most mails of the action to one address in limit_within; NULL for no limit.';
COMMENT ON COLUMN mailroom.actions.limit_within IS 'The time of limit_mails.';
COMMENT ON COLUMN mailroom.actions.renews IS
    'Whether a token that expired before it could be sent gets a new life; otherwise it is not sent.';
COMMENT ON COLUMN mailroom.actions.activates IS
    'Whether each new provisioned account gets a token of the action, and consuming it activates the account.';
COMMENT ON COLUMN mailroom.actions.paused_at IS
    'Since when its mails wait, as SES could not render one; NULL if they do not. `mailroom resume` ends it.';
COMMENT ON COLUMN mailroom.actions.pause_reason IS 'Why, in SES''s words.';
COMMENT ON COLUMN mailroom.actions.resumed_at IS
    'When a person last resumed it. A mail that was sent before cannot pause it again.';

CREATE FUNCTION mailroom.fits(p_account bigint, p_status account_status, p_needed account_status)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_account IS NULL THEN true
            WHEN p_needed IS NULL THEN coalesce(p_status <> 'suspended', false)
            ELSE coalesce(p_status = p_needed, false) END;
COMMENT ON FUNCTION mailroom.fits IS
    'Returns whether a token''s account has a status that its action requires. A token without an account fits.';

CREATE FUNCTION mailroom.known_actions()
RETURNS TABLE (action text, number smallint, prefix text, account text, has_link boolean, needs_code boolean,
               lifetime_s double precision, fields text[], lane text, limit_mails integer,
               limit_within_s double precision, renews boolean, activates boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT k.action::text, k.number, k.prefix, k.account_status::text, k.has_link, k.needs_code,
           extract(epoch FROM k.lifetime)::double precision, k.fields, k.lane::text, k.limit_mails,
           extract(epoch FROM k.limit_within)::double precision, k.renews, k.activates
    FROM mailroom.actions k ORDER BY k.number
$$;
COMMENT ON FUNCTION mailroom.known_actions IS
    'Returns the actions that the database has, as rows of mailroom.actions with times in seconds.';
