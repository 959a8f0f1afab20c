-- Leases: what was handed out and is not settled.
--
-- A claim moves the cursor and writes a lease in one transaction; settling ends the lease. A lease past its
-- due_at is claimed again, before new tokens. Each claim gives it a new random key, and a worker that names an
-- older key can neither settle nor renew it. An id alone does not name a lease: after an asynchronous failover
-- that lost the last commits, sequences go back and give the same ids again.

CREATE TABLE mailroom.leases (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane       mailroom.lane NOT NULL,
    tokens     bigint[]    NOT NULL,
    worker     text        NOT NULL,
    key        uuid        NOT NULL DEFAULT gen_random_uuid(),
    generation integer     NOT NULL,
    due_at     timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Compressing a lease of a thousand tokens took a quarter of its claim's time.
ALTER TABLE mailroom.leases ALTER COLUMN tokens SET STORAGE EXTERNAL;
CREATE INDEX leases_lane_due_idx ON mailroom.leases (lane, due_at);

COMMENT ON TABLE mailroom.leases IS
    'What is handed out and not settled. The first worker to claim after a lease''s due_at gets it.';
COMMENT ON COLUMN mailroom.leases.id IS 'The lease.';
COMMENT ON COLUMN mailroom.leases.lane IS 'The lane of its tokens.';
COMMENT ON COLUMN mailroom.leases.tokens IS 'The tokens that are not settled yet.';
COMMENT ON COLUMN mailroom.leases.worker IS
    'The worker that holds it; empty while its tokens wait for a retry, scheduled while they wait for send_at, '
    'paused while they are put off since they cannot be sent, restore after a restore.';
COMMENT ON COLUMN mailroom.leases.key IS
    'Random, and new with each claim. A worker that names an older key can neither settle nor renew it.';
COMMENT ON COLUMN mailroom.leases.generation IS 'How often it was claimed.';
COMMENT ON COLUMN mailroom.leases.due_at IS 'When it may be claimed again.';

CREATE FUNCTION mailroom.settle(p_lease bigint, p_key uuid, p_tokens bigint[] DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF p_tokens IS NOT NULL THEN
        UPDATE mailroom.leases l
        SET tokens = ARRAY(SELECT u.id FROM unnest(l.tokens) WITH ORDINALITY u (id, n)
                           WHERE u.id <> ALL (p_tokens) ORDER BY u.n)
        WHERE l.id = p_lease AND l.key = p_key AND NOT l.tokens <@ p_tokens;
        IF FOUND THEN
            RETURN true;
        END IF;
    END IF;
    DELETE FROM mailroom.leases l
    WHERE l.id = p_lease AND l.key = p_key
      AND (p_tokens IS NULL OR l.tokens <@ p_tokens);
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION mailroom.settle IS
    'Ends a lease, or only the given tokens of it. Returns false if the lease no longer has this key.';

CREATE FUNCTION mailroom.record(p_lease bigint, p_key uuid, p_attempt integer, p_worker text,
                                p_tokens bigint[], p_fingerprints bytea[], p_results text[], p_providers text[],
                                p_message_ids text[], p_details text[], p_recipients text[], p_templates text[],
                                p_languages text[], p_retry_ms integer, p_retry_limit integer, p_never_early boolean)
RETURNS TABLE (token bigint, outcome text, settled boolean, age double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    outcomes text[];
    ages     double precision[];
    subjects text[];
    deleted  boolean[];
    rest     bigint[];
    put_off  boolean;
    lost     boolean;
    ours     boolean;
BEGIN
    -- A retry by hand grants a token as many attempts again. LIMIT makes it probe the primary key.
    SELECT array_agg(CASE
        WHEN NOT mailroom.is_of(u.fingerprint, u.secret) THEN 'lost'
        WHEN u.result IN ('sent', 'rejected', 'unknown') THEN u.result
        WHEN u.result = 'failed' AND p_retry_limit <= 1 + (
            SELECT count(*) FROM mailroom.deliveries d
            WHERE d.token = u.id AND d.fingerprint = u.fingerprint AND d.result = 'failed' AND d.id > coalesce((
                SELECT max(h.id) FROM mailroom.deliveries h
                WHERE h.token = u.id AND h.fingerprint = u.fingerprint
                  AND h.outcome = 'retried' AND h.result = 'by hand'), 0))
            THEN 'rejected'
        ELSE 'retried' END ORDER BY u.n),
        array_agg(extract(epoch FROM clock_timestamp() - u.requested_at)::double precision ORDER BY u.n),
        array_agg(coalesce(u.subject, '') ORDER BY u.n),
        array_agg(u.secret IS NULL ORDER BY u.n)
    INTO outcomes, ages, subjects, deleted
    FROM (SELECT g.*, t.secret, t.requested_at, t.subject
          FROM unnest(p_tokens, p_fingerprints, p_results) WITH ORDINALITY AS g (id, fingerprint, result, n)
          LEFT JOIN LATERAL (SELECT x.secret, coalesce(x.send_at, x.created_at) AS requested_at, x.subject
                             FROM public.tokens x WHERE x.id = g.id LIMIT 1) t
              ON true) u;
    -- The recipient of a deleted token may have been forgotten since it was handed out.
    INSERT INTO mailroom.deliveries
        (token, fingerprint, attempt, outcome, result, provider, message_id, detail, worker, recipient, template,
         language, subject)
    SELECT u.id, u.fingerprint, p_attempt, u.outcome, u.result, u.provider, left(u.message_id, 200),
           CASE WHEN u.deleted THEN mailroom.without_addresses(u.detail) ELSE u.detail END, p_worker,
           CASE WHEN u.deleted THEN '' ELSE u.recipient END, u.template, u.language, u.subject
    FROM unnest(p_tokens, p_fingerprints, outcomes, p_results, p_providers, p_message_ids, p_details, p_recipients,
                p_templates, p_languages, subjects, deleted)
         AS u (id, fingerprint, outcome, result, provider, message_id, detail, recipient, template, language, subject,
               deleted)
    WHERE u.result <> '' AND u.outcome <> 'lost';

    SELECT coalesce(array_agg(u.id ORDER BY u.n), '{}'), bool_and(u.result IN ('', 'paused')),
           bool_or(u.result = 'unknown')
    INTO rest, put_off, lost
    FROM unnest(p_tokens, p_results, outcomes) WITH ORDINALITY AS u (id, result, outcome, n)
    WHERE u.outcome NOT IN ('sent', 'rejected', 'lost');
    IF cardinality(rest) > 0 THEN
        UPDATE mailroom.leases l
        SET tokens = rest, worker = CASE WHEN put_off THEN 'paused' ELSE '' END, due_at = least(
            clock_timestamp() + p_retry_ms * interval '1 millisecond',
            -- A mail whose answer was lost waits for an event, and is sent once more before it is too late.
            (SELECT CASE WHEN lost AND NOT p_never_early THEN least(greatest(min(t.expires_at) - interval '5 seconds',
                                                       clock_timestamp() + interval '1 second'), min(t.expires_at))
                         ELSE min(t.expires_at) END
             FROM public.tokens t WHERE t.id = ANY (rest)))
        WHERE l.id = p_lease AND l.key = p_key;
    ELSE
        DELETE FROM mailroom.leases l WHERE l.id = p_lease AND l.key = p_key;
    END IF;
    ours := FOUND;
    -- A mail that was not sent counts for no limit, unless an earlier attempt may have sent it.
    IF ours THEN
        DELETE FROM mailroom.granted g
        WHERE g.token = ANY (ARRAY(SELECT u.id FROM unnest(p_tokens, outcomes) AS u (id, outcome)
                                   WHERE u.outcome IN ('retried', 'rejected')))
          AND NOT EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = g.token AND d.outcome = 'unknown');
    END IF;
    RETURN QUERY
        SELECT u.id, u.outcome, ours, u.age FROM unnest(p_tokens, outcomes, ages) AS u (id, outcome, age);
END $$;
COMMENT ON FUNCTION mailroom.record IS
    'Settles a lease with the outcomes of an attempt. The outcomes go into the ledger whether or not the lease '
    'still has this key; settled says whether it did. Sent and rejected tokens leave the lease. The '
    'others are due after p_retry_ms, or when the first of them expires if that is earlier; five seconds before that '
    'if an answer is unknown, unless p_never_early, as where the retry may go by another transport. A token that failed '
    'p_retry_limit times without a stated reason is rejected. An empty result means that the token was not '
    'tried; it leaves no row. If all that are to be tried again were not tried, or paused, then '
    'release(''paused'') makes them due. The outcome is lost, and nothing is written, if the token with this id has '
    'another fingerprint: a failover lost the token, and its id was given again. The row of a deleted token has no '
    'address. age is in seconds since the mail was '
    'requested, or since send_at; NULL for a deleted token.';

CREATE FUNCTION mailroom.renew(p_leases bigint[], p_keys uuid[], p_lease_ms integer)
RETURNS SETOF uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    UPDATE mailroom.leases l
    SET due_at = clock_timestamp() + p_lease_ms * interval '1 millisecond'
    FROM unnest(p_leases, p_keys) AS held (id, key)
    WHERE l.id = held.id AND l.key = held.key
    RETURNING l.key
$$;
COMMENT ON FUNCTION mailroom.renew IS
    'Moves due_at of the leases that still have these keys, and returns those keys.';

CREATE FUNCTION mailroom.release(p_worker text, p_keep uuid[] DEFAULT '{}') RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH released AS (
        UPDATE mailroom.leases l SET due_at = clock_timestamp()
        WHERE l.worker = p_worker AND l.key <> ALL (p_keep) AND l.due_at > clock_timestamp()
        RETURNING cardinality(l.tokens) AS tokens)
    SELECT coalesce(sum(r.tokens), 0)::bigint FROM released r
$$;
COMMENT ON FUNCTION mailroom.release IS
    'Makes a worker''s leases due at once, except those with a key in p_keep, and returns how many tokens that frees.';
