-- Made from src/mailroom/sql as it was then. A released migration never changes.

SELECT pg_catalog.set_config('search_path', pg_catalog.format('%s, pg_temp', mailroom.user_schema()), true),
       pg_catalog.set_config('check_function_bodies', 'off', true);

-- One form for all spellings of an address.
--
-- The form is hashed and indexed, so it must not depend on the locale of the database: a restore may change that.

-- RFC 3492, section 6.2. A label has at most 63 characters, so an array of them is fast enough.
CREATE FUNCTION mailroom.unicode_label(p_label text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    encoded CONSTANT text := substr(p_label, 5);
    hyphen  CONSTANT integer := length(encoded) - strpos(reverse(encoded), '-') + 1;
    codes   integer[] := '{}';
    at      integer := 1;
    code    integer := 128;
    place   integer := 0;
    bias    integer := 72;
    before  integer;
    weight  integer;
    digit   integer;
    step    integer;
    least_digit integer;
    points  integer;
    decoded text;
BEGIN
    IF p_label !~ '^xn--[a-z0-9-]{1,59}$' THEN
        RETURN p_label;
    END IF;
    IF strpos(encoded, '-') > 0 THEN
        codes := ARRAY(SELECT ascii(c) FROM string_to_table(left(encoded, hyphen - 1), NULL) c);
        at := hyphen + 1;
    END IF;
    WHILE at <= length(encoded) LOOP
        before := place;
        weight := 1;
        step := 36;
        LOOP
            digit := strpos('abcdefghijklmnopqrstuvwxyz0123456789', substr(encoded, at, 1)) - 1;
            IF at > length(encoded) OR digit < 0 OR digit > (2147483647 - place) / weight THEN
                RETURN p_label;
            END IF;
            at := at + 1;
            place := place + digit * weight;
            least_digit := least(greatest(step - bias, 1), 26);
            EXIT WHEN digit < least_digit;
            IF weight > 2147483647 / (36 - least_digit) THEN
                RETURN p_label;
            END IF;
            weight := weight * (36 - least_digit);
            step := step + 36;
        END LOOP;
        points := cardinality(codes) + 1;
        digit := (place - before) / CASE WHEN before = 0 THEN 700 ELSE 2 END;
        digit := digit + digit / points;
        bias := 0;
        WHILE digit > 455 LOOP
            digit := digit / 35;
            bias := bias + 36;
        END LOOP;
        bias := bias + 36 * digit / (digit + 38);
        IF place / points > 1114111 - code THEN
            RETURN p_label;
        END IF;
        code := code + place / points;
        place := place % points;
        IF code BETWEEN 55296 AND 57343 THEN
            RETURN p_label;
        END IF;
        codes := codes[:place] || code || codes[place + 1:];
        place := place + 1;
    END LOOP;
    SELECT string_agg(chr(c), '' ORDER BY n) INTO decoded FROM unnest(codes) WITH ORDINALITY AS u (c, n);
    -- What no registrar would take could turn one address into another.
    IF decoded IS NULL OR decoded ~ '^[\u0001-\u007f]*$' OR decoded ~ '[\u0001-\u0020\u007f-\u00a0.@\u3002]'
       OR decoded <> mailroom.plain_letters(decoded) THEN
        RETURN p_label;
    END IF;
    RETURN decoded;
END $$;
COMMENT ON FUNCTION mailroom.unicode_label IS
    'Returns a label of a domain in Unicode. One that does not begin with xn--, or cannot be decoded, stays as it is.';

CREATE FUNCTION mailroom.plain_letters(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(string_agg(CASE
        WHEN l.code BETWEEN 192 AND 222 AND l.code <> 215 OR l.code BETWEEN 913 AND 939 OR l.code BETWEEN 1040 AND 1071
            THEN chr(l.code + 32)
        WHEN l.code BETWEEN 1024 AND 1039 THEN chr(l.code + 80)
        WHEN l.code = 304 THEN 'i'
        WHEN l.code = 376 THEN chr(255)
        WHEN l.code = 902 THEN chr(940)
        WHEN l.code BETWEEN 904 AND 906 THEN chr(l.code + 37)
        WHEN l.code = 908 THEN chr(972)
        WHEN l.code BETWEEN 910 AND 911 THEN chr(l.code + 63)
        WHEN l.code % 2 = 0 AND (l.code BETWEEN 256 AND 311 OR l.code BETWEEN 330 AND 375 OR l.code BETWEEN 1120 AND 1215
                                 OR l.code BETWEEN 7680 AND 7829 OR l.code BETWEEN 7840 AND 7935)
             OR l.code % 2 = 1 AND (l.code BETWEEN 313 AND 328 OR l.code BETWEEN 377 AND 382)
            THEN chr(l.code + 1)
        ELSE l.letter END, '' ORDER BY l.n), '')
    FROM (SELECT s.letter, s.n, ascii(s.letter) AS code
          FROM string_to_table(lower(normalize(p_text, NFKC) COLLATE "C"), NULL)
               WITH ORDINALITY AS s (letter, n)) l
$$;
COMMENT ON FUNCTION mailroom.plain_letters IS
    'Returns a text of a UTF-8 database in plain and small letters: Latin, Greek and Cyrillic.';

CREATE FUNCTION mailroom.unicode_address(p_email text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    address text := lower(p_email COLLATE "C");
    up_to_at integer;
BEGIN
    IF getdatabaseencoding() = 'UTF8' THEN
        address := mailroom.plain_letters(p_email);
        up_to_at := length(address) - strpos(reverse(address), '@') + 1;
        IF strpos(address, '@') > 0 THEN
            address := left(address, up_to_at) || coalesce((
                SELECT string_agg(mailroom.unicode_label(l.label), '.' ORDER BY l.n)
                FROM string_to_table(translate(substr(address, up_to_at + 1), U&'\3002', '.'), '.')
                     WITH ORDINALITY AS l (label, n)), '');
        END IF;
    END IF;
    RETURN CASE WHEN address LIKE '%@%_.' THEN rtrim(address, '.') ELSE address END;
END $$;
COMMENT ON FUNCTION mailroom.unicode_address IS
    'Returns what mailroom.normal_address does, for an address with letters beyond ASCII or a label that begins with xn--.';

-- NFKC makes 18 letters of some, and an entry of an index has room for 2,704 bytes. No address that can be mailed has
-- more than 320 characters.
CREATE FUNCTION mailroom.normal_address(p_email text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN left(CASE WHEN p_email ~ '^[\u0001-\u007f]*$' AND p_email !~* 'xn--' AND right(p_email, 1) <> '.'
                 THEN lower(p_email COLLATE "C")
                 ELSE mailroom.unicode_address(p_email) END, 320);
COMMENT ON FUNCTION mailroom.normal_address IS
    'Returns one form for all spellings of an address: in small and plain letters (NFKC), with the domain in Unicode '
    'and without a final dot, cut to 320 characters. Only ASCII letters are changed in a database that is not UTF-8.';

-- The ledger: one row for each attempt to send, and for each decision of a person.
--
-- `mailroom run` settles a lease when the transport has answered, with an outcome for each of its tokens. A
-- token to be retried stays in the lease, held by no worker, until it is due. Then a claim tests again whether
-- it may be mailed, and records the tokens that may not.

CREATE TABLE mailroom.deliveries (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token       bigint      NOT NULL,
    fingerprint bytea,
    attempt     integer     NOT NULL,
    outcome     text        NOT NULL,
    result      text        NOT NULL DEFAULT '',
    provider    text        NOT NULL DEFAULT '',
    message_id  text        NOT NULL DEFAULT '',
    detail      text        NOT NULL DEFAULT '',
    worker      text        NOT NULL DEFAULT '',
    recipient   text        NOT NULL DEFAULT '',
    template    text        NOT NULL DEFAULT '',
    language    text        NOT NULL DEFAULT '',
    subject     text        NOT NULL DEFAULT '',
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT deliveries_outcome_check
        CHECK (outcome IN ('sent', 'retried', 'rejected', 'expired', 'skipped', 'suppressed', 'unknown'))
);
CREATE INDEX deliveries_token_idx ON mailroom.deliveries (token, id);
CREATE INDEX deliveries_at_idx ON mailroom.deliveries (at);
-- Few rows are rejections, and the dead letters are among them.
CREATE INDEX deliveries_rejected_idx ON mailroom.deliveries (at, id) WHERE outcome = 'rejected';
-- These find a person's mails after the address changed, or the person was deleted.
CREATE INDEX deliveries_recipient_idx ON mailroom.deliveries (mailroom.normal_address(recipient), id)
    WHERE recipient <> '';
CREATE INDEX deliveries_message_id_idx ON mailroom.deliveries (message_id)
    WHERE message_id <> '';
CREATE INDEX deliveries_subject_idx ON mailroom.deliveries (subject, id) WHERE subject <> '';

COMMENT ON TABLE mailroom.deliveries IS
    'The ledger: the outcome of each attempt of `mailroom run`, and the decisions of people. Insert only: only '
    'mailroom.forget erases words of a row, and `mailroom prune` deletes old rows.';
COMMENT ON COLUMN mailroom.deliveries.id IS 'The order of insertion.';
COMMENT ON COLUMN mailroom.deliveries.token IS 'The token. It may have been deleted since.';
COMMENT ON COLUMN mailroom.deliveries.fingerprint IS
    'The fingerprint of the token''s secret. A token with the same id and another fingerprint is another token, '
    'and the row does not belong to it. NULL if it is not known.';
COMMENT ON COLUMN mailroom.deliveries.attempt IS
    'The number of the attempt, which is the lease''s generation; 0 for a person''s decision.';
COMMENT ON COLUMN mailroom.deliveries.outcome IS
    'sent, rejected (for good), expired or skipped (not sent, for the reason in detail), suppressed (not sent: the '
    'address gets no mail), retried, unknown (the answer was lost; retried).';
COMMENT ON COLUMN mailroom.deliveries.result IS
    'The class of the transport''s answer: sent, rejected, transient, throttled, unknown, failed, paused; by '
    'hand for a person''s decision; known if an event of SES told the answer, unrendered if one told that SES took the mail '
    'and could not render it.';
COMMENT ON COLUMN mailroom.deliveries.provider IS
    'The transport that was used: ses, sesv2, smtp, debug; of two mail servers with its host and port.';
COMMENT ON COLUMN mailroom.deliveries.message_id IS 'The provider''s id of the mail, if it was sent.';
COMMENT ON COLUMN mailroom.deliveries.detail IS
    'The reason, in the provider''s words or Mailroom''s. It never holds a secret.';
COMMENT ON COLUMN mailroom.deliveries.worker IS 'The worker or person that wrote the row.';
COMMENT ON COLUMN mailroom.deliveries.recipient IS 'The address; empty if it is not known, or was forgotten.';
COMMENT ON COLUMN mailroom.deliveries.template IS 'The name of the template that the mail was made from.';
COMMENT ON COLUMN mailroom.deliveries.language IS 'The language of that template; empty for the templates'' own.';
COMMENT ON COLUMN mailroom.deliveries.subject IS 'The token''s subject; empty if it has none, or was forgotten.';
COMMENT ON COLUMN mailroom.deliveries.at IS 'When the row was written.';

-- After an asynchronous failover that lost the last commits, sequences go back: a new token gets the id of a
-- lost one. A secret does not come again, and eight bytes of its digest do not tell it.
CREATE FUNCTION mailroom.fingerprint(p_secret bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN substring(sha256(p_secret) FOR 8);
COMMENT ON FUNCTION mailroom.fingerprint IS
    'Returns the first 8 bytes of the SHA-256 of a token''s secret. With the id it names the token for ever.';

CREATE FUNCTION mailroom.is_of(p_fingerprint bytea, p_secret bytea) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(p_fingerprint = mailroom.fingerprint(p_secret), true);
COMMENT ON FUNCTION mailroom.is_of IS
    'Returns whether a row of the ledger with this fingerprint belongs to the token of its id that has this '
    'secret. True if either is NULL: then only the id is known.';

CREATE FUNCTION mailroom.refuse_update() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'mailroom: the ledger is insert only' USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;
COMMENT ON FUNCTION mailroom.refuse_update IS 'Refuses updates of the ledger and of events, which are insert only.';

-- All columns but those that mailroom.forget erases.
CREATE TRIGGER deliveries_insert_only
    BEFORE UPDATE OF id, token, fingerprint, attempt, outcome, result, provider, message_id, worker, template, language, at
    ON mailroom.deliveries FOR EACH STATEMENT EXECUTE FUNCTION mailroom.refuse_update();

CREATE FUNCTION mailroom.unrendered(p_token bigint, p_after bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT EXISTS (SELECT FROM mailroom.deliveries d
                   WHERE d.token = p_token AND d.id > p_after AND d.result = 'unrendered')
$$;
COMMENT ON FUNCTION mailroom.unrendered IS
    'Returns whether SES reported, after this row of the ledger, that it could not render the token''s mail.';

-- One statement for many tokens, in a language that keeps its plan, since a claim may meet a thousand.
CREATE FUNCTION mailroom.not_mailable(p_tokens bigint[]) RETURNS TABLE (token bigint, fingerprint bytea, why text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    suppressing CONSTANT boolean := EXISTS (SELECT FROM mailroom.suppressions);
BEGIN
    RETURN QUERY SELECT p.id, mailroom.fingerprint(t.secret), CASE
        WHEN t.id IS NULL THEN 'deleted'
        WHEN t.consumed_at IS NOT NULL THEN 'consumed'
        WHEN t.ended_at IS NOT NULL THEN t.ended_as
        WHEN t.expires_at <= clock_timestamp() AND NOT (coalesce(k.renews, false) AND mailroom.renewable(t))
            THEN 'expired'
        WHEN a.status = 'suspended' THEN 'suspended'
        WHEN k.action IS NULL THEN 'unknown action'
        WHEN NOT mailroom.fits(t.account, a.status, k.account_status) THEN 'ineligible'
        WHEN suppressing AND mailroom.suppressed(t.email) IS NOT NULL THEN 'suppressed'
    END
    FROM unnest(p_tokens) WITH ORDINALITY AS p (id, n)
    LEFT JOIN public.tokens t ON t.id = p.id
    LEFT JOIN public.accounts a ON a.id = t.account
    LEFT JOIN mailroom.actions k ON k.action = t.action
    ORDER BY p.n;
END $$;
COMMENT ON FUNCTION mailroom.not_mailable IS
    'Returns for each token why it may not be mailed, as mailroom.why_not_mailable does, and its fingerprint, which is '
    'NULL for a deleted one.';

CREATE FUNCTION mailroom.why_not_mailable(p_token bigint) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT m.why FROM mailroom.not_mailable(ARRAY[p_token]) m
$$;
COMMENT ON FUNCTION mailroom.why_not_mailable IS
    'Returns why a token may not be mailed: deleted, consumed, tokens.ended_as (what ended it), '
    'expired (and not to be renewed), suspended, unknown action (without a row in '
    'mailroom.actions), ineligible, suppressed; NULL if it may.';

CREATE FUNCTION mailroom.record_skipped(p_tokens bigint[], p_attempt integer, p_worker text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, detail, worker, recipient, subject)
    SELECT m.token, coalesce(m.fingerprint, ''), p_attempt,
           CASE coalesce(m.why, 'expired') WHEN 'expired' THEN 'expired' WHEN 'suppressed' THEN 'suppressed'
                                           ELSE 'skipped' END,
           CASE m.why WHEN 'suppressed' THEN mailroom.suppressed(t.email) ELSE coalesce(m.why, 'expired') END, p_worker,
           coalesce(t.email, ''), coalesce(t.subject, '')
    FROM mailroom.not_mailable(p_tokens) m LEFT JOIN public.tokens t ON t.id = m.token;
END $$;
COMMENT ON FUNCTION mailroom.record_skipped IS
    'Records in the ledger that these tokens may not be mailed any more: expired, suppressed, or skipped with the reason.';

-- The end of each migration: what it is, and who may call what. `mailroom roles` grants the rest to roles.

CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 2;
COMMENT ON FUNCTION mailroom.schema_version IS
    'Returns the number of the last migration. Mailroom''s programs compare it with the one that they need.';

SELECT mailroom.finish_migration();

-- A trigger does not check who may call its function, but any user that may can attach it to a table.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom FROM PUBLIC;
-- The user that inserts into tokens calls the defaults of its columns, its trigger's condition and its check.
GRANT EXECUTE ON FUNCTION mailroom.random_secret, mailroom.random_code, mailroom.is_sound, mailroom.is_incomplete TO PUBLIC;
