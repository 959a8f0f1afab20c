-- Dead letters, that is what was rejected for good, and which workers are alive.
--
-- A token is a dead letter when the last row of the ledger for it is rejected, none is sent, and no
-- lease holds it. What the people on call do with one is a row of the ledger too, with the result
-- 'by hand': retried (it is in a lease again), or skipped (another token took its place, or it was
-- dropped). Nothing here gives out a secret or a code.

-- Few rows of the ledger are rejections, and only they are walked, from the newest on.
CREATE INDEX deliveries_rejected_idx ON mailroom.deliveries (at, id) WHERE outcome = 'rejected';

COMMENT ON COLUMN mailroom.deliveries.result IS
    'The class of the transport''s answer: sent, rejected, transient, throttled, unknown, failed, paused; by hand, when a person decided.';

-- Settle a lease with the outcomes of an attempt. Sent and rejected tokens leave it; the others stay,
-- held by nobody and due after p_retry_ms, or at the first of their expiries if that comes before. A
-- token that failed p_retry_limit times without a stated reason is rejected; a retry by hand gives it
-- as many tries again.
--
-- The outcomes are written down whether or not the lease is still this generation's; settled says
-- whether it was. A token with an empty result was not tried, and leaves no row.
CREATE OR REPLACE FUNCTION mailroom.record(p_lease bigint, p_generation integer, p_worker text, p_provider text,
                                p_tokens bigint[], p_results text[], p_message_ids text[], p_details text[],
                                p_retry_ms integer, p_retry_limit integer)
RETURNS TABLE (token bigint, outcome text, settled boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    outcomes text[];
    rest     bigint[];
    ours     boolean;
BEGIN
    SELECT array_agg(CASE
        WHEN u.result IN ('sent', 'rejected', 'unknown') THEN u.result
        WHEN u.result = 'failed' AND p_retry_limit <= 1 + (
            SELECT count(*) FROM mailroom.deliveries d
            WHERE d.token = u.id AND d.result = 'failed' AND d.id > coalesce((
                SELECT max(h.id) FROM mailroom.deliveries h
                WHERE h.token = u.id AND h.outcome = 'retried' AND h.result = 'by hand'), 0))
            THEN 'rejected'
        ELSE 'retried' END ORDER BY u.n)
    INTO outcomes FROM unnest(p_tokens, p_results) WITH ORDINALITY AS u (id, result, n);
    INSERT INTO mailroom.deliveries (token, attempt, outcome, result, provider, message_id, detail, worker)
    SELECT u.id, p_generation, u.outcome, u.result, p_provider, u.message_id, u.detail, p_worker
    FROM unnest(p_tokens, outcomes, p_results, p_message_ids, p_details) AS u (id, outcome, result, message_id, detail)
    WHERE u.result <> '';

    rest := ARRAY(SELECT u.id FROM unnest(p_tokens, outcomes) AS u (id, outcome)
                  WHERE u.outcome NOT IN ('sent', 'rejected'));
    IF cardinality(rest) > 0 THEN
        UPDATE mailroom.leases l
        SET tokens = rest, worker = '', due_at = least(
            clock_timestamp() + p_retry_ms * interval '1 millisecond',
            (SELECT min(t.expires_at) FROM public.tokens t WHERE t.id = ANY (rest)))
        WHERE l.id = p_lease AND l.generation = p_generation;
    ELSE
        DELETE FROM mailroom.leases l WHERE l.id = p_lease AND l.generation = p_generation;
    END IF;
    ours := FOUND;
    RETURN QUERY SELECT u.id, u.outcome, ours FROM unnest(p_tokens, outcomes) AS u (id, outcome);
END $$;

CREATE FUNCTION mailroom.is_dead(p_token bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT d.outcome = 'rejected' FROM mailroom.deliveries d
                     WHERE d.token = p_token ORDER BY d.id DESC LIMIT 1), false)
       AND NOT EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = p_token AND d.outcome = 'sent')
       AND NOT EXISTS (SELECT FROM mailroom.leases l WHERE p_token = ANY (l.tokens))
$$;

-- The dead letters that were rejected before a row of the ledger (its at and id), newest first; of one
-- action, or of all when it is NULL; of the time since, or of all when that is NULL. A token that was
-- deleted has no action. attempts counts the transport's answers, expires_in is in seconds and NULL
-- when it never expires.
--
-- It must walk deliveries_rejected_idx and probe the rest, whatever the planner believes about the
-- tables: hence the settings.
CREATE FUNCTION mailroom.dead_letters(p_action text, p_since interval, p_before_at timestamptz,
                                      p_before_id bigint, p_limit integer)
RETURNS TABLE (id bigint, token bigint, action text, email text, at timestamptz, attempts bigint,
               detail text, hindrance text, expires_in double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_bitmapscan = off SET enable_sort = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off AS $$
    SELECT d.id, d.token, t.action::text, a.email, d.at,
           (SELECT count(*) FROM mailroom.deliveries e
            WHERE e.token = d.token AND e.result NOT IN ('', 'by hand')),
           coalesce(nullif(d.detail, ''), d.result), mailroom.hindrance(d.token),
           extract(epoch FROM nullif(t.expires_at, 'infinity') - clock_timestamp())::double precision
    FROM mailroom.deliveries d
    LEFT JOIN public.tokens t ON t.id = d.token
    LEFT JOIN public.accounts a ON a.id = t.account
    WHERE d.outcome = 'rejected'
      AND (d.at, d.id) < (p_before_at, p_before_id)
      AND d.at > coalesce(statement_timestamp() - p_since, '-infinity')
      AND (p_action IS NULL OR t.action::text = p_action)
      AND NOT EXISTS (SELECT FROM mailroom.deliveries e
                      WHERE e.token = d.token AND (e.id > d.id OR e.outcome = 'sent'))
      AND d.token NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
    ORDER BY d.at DESC, d.id DESC
    LIMIT p_limit
$$;

-- How many dead letters there are among the newest p_rows rejections; more says that there are older
-- rejections, which were not looked at.
CREATE FUNCTION mailroom.dead_count(p_action text, p_since interval, p_rows integer)
RETURNS TABLE (dead bigint, more boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_bitmapscan = off SET enable_sort = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off AS $$
    SELECT count(*) FILTER (
               WHERE r.n <= p_rows
                 AND (p_action IS NULL
                      OR EXISTS (SELECT FROM public.tokens t WHERE t.id = r.token AND t.action::text = p_action))
                 AND NOT EXISTS (SELECT FROM mailroom.deliveries e
                                 WHERE e.token = r.token AND (e.id > r.id OR e.outcome = 'sent'))
                 AND r.token NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)),
           count(*) > p_rows
    FROM (SELECT d.id, d.token, row_number() OVER () AS n
          FROM (SELECT x.id, x.token FROM mailroom.deliveries x
                WHERE x.outcome = 'rejected' AND x.at > coalesce(statement_timestamp() - p_since, '-infinity')
                ORDER BY x.at DESC, x.id DESC LIMIT p_rows + 1) d) r
$$;

-- One person at a time decides about dead letters, for one statement each, and sees what the one before
-- did. A snapshot from before the wait would not.
CREATE FUNCTION mailroom.lock_dead_letters() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'mailroom: dead letters are decided about in READ COMMITTED transactions only'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('mailroom.dead_letters', 0));
END $$;

-- Give the account of an expired dead letter a new token of the same action. The outcome is renewed (and
-- other is the new token), valid (it has one already: other), superseded (a later one was consumed), busy
-- (somebody else has the account locked), or why it may not be mailed.
CREATE FUNCTION mailroom.renew_dead(p_token bigint, p_reason text, p_worker text,
                                    OUT outcome text, OUT other bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old   public.tokens;
    owner public.accounts;
BEGIN
    SELECT * INTO old FROM public.tokens t WHERE t.id = p_token;
    -- Passed over when it is locked: waiting for many accounts, one after the other, could be a deadlock.
    SELECT * INTO owner FROM public.accounts a WHERE a.id = old.account FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        outcome := 'busy';
    ELSIF owner.status = 'suspended' THEN
        outcome := 'suspended';
    ELSIF NOT EXISTS (SELECT FROM mailroom.actions k
                      WHERE k.action = old.action AND k.account_status = owner.status) THEN
        outcome := 'ineligible';
    ELSIF EXISTS (SELECT FROM public.tokens s WHERE s.account = owner.id AND s.action = old.action
                  AND s.consumed_at >= old.created_at) THEN
        outcome := 'superseded';
    ELSE
        SELECT s.id INTO other FROM public.tokens s
        WHERE s.account = owner.id AND s.action = old.action
          AND s.consumed_at IS NULL AND s.expires_at > clock_timestamp()
        ORDER BY s.id DESC LIMIT 1;
        IF FOUND THEN
            outcome := 'valid';
        ELSE
            INSERT INTO public.tokens (action, account) VALUES (old.action, owner.id) RETURNING id INTO other;
            INSERT INTO mailroom.deliveries (token, attempt, outcome, result, detail, worker)
            VALUES (p_token, 0, 'skipped', 'by hand',
                    'renewed as token ' || other || coalesce(': ' || nullif(p_reason, ''), ''), p_worker);
            outcome := 'renewed';
        END IF;
    END IF;
END $$;

-- Put dead letters that may still be mailed into leases that are due at once and held by nobody, and
-- ring. The outcome of each is retried, why it may not be mailed, 'not dead', or with p_renew what
-- became of the renewal of one that expired.
CREATE FUNCTION mailroom.retry_dead(p_queue text, p_channel text, p_tokens bigint[], p_renew boolean,
                                    p_reason text, p_worker text)
RETURNS TABLE (token bigint, outcome text, other bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    queue   public.job_type;
    retried bigint[] := '{}';
BEGIN
    SELECT j.job_type INTO queue FROM public.jobs j WHERE j.job_type::text = p_queue;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'mailroom: unknown queue "%"', p_queue
            USING ERRCODE = 'undefined_object', HINT = 'The queues are the rows of the table jobs.';
    END IF;
    PERFORM mailroom.lock_dead_letters();
    FOR token IN SELECT DISTINCT u FROM unnest(p_tokens) u ORDER BY u LOOP
        other := NULL;
        outcome := CASE WHEN mailroom.is_dead(token) THEN coalesce(mailroom.hindrance(token), 'retried')
                        ELSE 'not dead' END;
        IF outcome = 'expired' AND p_renew THEN
            SELECT r.outcome, r.other INTO outcome, other
            FROM mailroom.renew_dead(token, p_reason, p_worker) r;
        END IF;
        IF outcome = 'retried' THEN
            retried := retried || token;
            INSERT INTO mailroom.deliveries (token, attempt, outcome, result, detail, worker)
            VALUES (token, 0, 'retried', 'by hand',
                    'by hand' || coalesce(': ' || nullif(p_reason, ''), ''), p_worker);
        END IF;
        RETURN NEXT;
    END LOOP;
    IF cardinality(retried) > 0 THEN
        INSERT INTO mailroom.leases (job, tokens, worker, generation, due_at)
        SELECT queue, array_agg(u.id ORDER BY u.n), '', 0, clock_timestamp()
        FROM unnest(retried) WITH ORDINALITY AS u (id, n) GROUP BY (u.n - 1) / 50;
        PERFORM pg_notify(p_channel, cardinality(retried)::text);
    END IF;
END $$;

-- Let these be dead letters no more, without mailing them. The outcome of each is dropped or 'not dead'.
CREATE FUNCTION mailroom.drop_dead(p_tokens bigint[], p_reason text, p_worker text)
RETURNS TABLE (token bigint, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM mailroom.lock_dead_letters();
    FOR token IN SELECT DISTINCT u FROM unnest(p_tokens) u ORDER BY u LOOP
        outcome := 'not dead';
        IF mailroom.is_dead(token) THEN
            outcome := 'dropped';
            INSERT INTO mailroom.deliveries (token, attempt, outcome, result, detail, worker)
            VALUES (token, 0, 'skipped', 'by hand',
                    'dropped by hand' || coalesce(': ' || nullif(p_reason, ''), ''), p_worker);
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- The workers of `mailroom run`, each of which says every few seconds that it lives. Rows are updated in
-- place, for no index holds what changes and the pages have room.
CREATE TABLE mailroom.workers (
    worker        text PRIMARY KEY,
    job           public.job_type NOT NULL REFERENCES public.jobs,
    version       text        NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    trouble       text        NOT NULL DEFAULT '',
    trouble_since timestamptz
) WITH (fillfactor = 10);

-- Say that a worker lives, and what keeps it from sending ('' when nothing does). Forgets those that
-- have not been seen for a day.
CREATE FUNCTION mailroom.heartbeat(p_queue text, p_worker text, p_version text, p_trouble text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO mailroom.workers AS w (worker, job, version, trouble, trouble_since)
    SELECT p_worker, j.job_type, p_version, p_trouble, CASE WHEN p_trouble <> '' THEN clock_timestamp() END
    FROM public.jobs j WHERE j.job_type::text = p_queue
    ON CONFLICT (worker) DO UPDATE
    SET job = excluded.job, version = excluded.version, seen_at = clock_timestamp(), trouble = excluded.trouble,
        trouble_since = CASE WHEN excluded.trouble <> '' THEN coalesce(w.trouble_since, excluded.trouble_since) END;
    DELETE FROM mailroom.workers w WHERE w.worker IN (
        SELECT o.worker FROM mailroom.workers o WHERE o.seen_at < clock_timestamp() - interval '1 day'
        FOR UPDATE SKIP LOCKED);
$$;

-- Forget a worker that ends in order.
CREATE FUNCTION mailroom.leave(p_worker text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM mailroom.workers w WHERE w.worker = p_worker
$$;

-- The workers of a queue that were seen in the last hour, the longest-lived first. One is alive that was
-- seen in the last 15 seconds; the others stopped answering without leaving. up and silent are in seconds.
CREATE FUNCTION mailroom.workers_of(p_queue text)
RETURNS TABLE (worker text, version text, alive boolean, started_at timestamptz, seen_at timestamptz,
               up double precision, silent double precision, leases bigint, tokens bigint,
               trouble text, trouble_since timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT w.worker, w.version, w.seen_at > n.now - interval '15 seconds', w.started_at, w.seen_at,
           extract(epoch FROM n.now - w.started_at)::double precision,
           extract(epoch FROM n.now - w.seen_at)::double precision,
           coalesce(h.leases, 0), coalesce(h.tokens, 0), w.trouble, w.trouble_since
    FROM (SELECT clock_timestamp() AS now) n
    JOIN public.jobs j ON j.job_type::text = p_queue
    JOIN mailroom.workers w ON w.job = j.job_type AND w.seen_at > n.now - interval '1 hour'
    LEFT JOIN (SELECT l.job, l.worker, count(*) AS leases, sum(cardinality(l.tokens))::bigint AS tokens
               FROM mailroom.leases l GROUP BY l.job, l.worker) h ON h.job = w.job AND h.worker = w.worker
    ORDER BY w.started_at, w.worker
$$;

REVOKE EXECUTE ON FUNCTION
    mailroom.is_dead(bigint),
    mailroom.dead_letters(text, interval, timestamptz, bigint, integer),
    mailroom.dead_count(text, interval, integer),
    mailroom.lock_dead_letters(),
    mailroom.renew_dead(bigint, text, text),
    mailroom.retry_dead(text, text, bigint[], boolean, text, text),
    mailroom.drop_dead(bigint[], text, text),
    mailroom.heartbeat(text, text, text, text),
    mailroom.leave(text),
    mailroom.workers_of(text)
FROM PUBLIC;
