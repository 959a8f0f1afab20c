-- What the people on call ask: how the queue is, what became of a mail; and the broom.
--
-- Nothing here gives out a secret or a code.

-- How the queue is, in one row (none for an unknown queue). in_flight is what a worker holds,
-- retrying what waits in a lease to be tried again; the counts are the ledger's.
CREATE FUNCTION mailroom.overview(p_queue text)
RETURNS TABLE (waiting bigint, in_flight bigint, retrying bigint, oldest_age double precision,
               sent_minute bigint, rejected_minute bigint, unknown_minute bigint,
               sent_hour bigint, rejected_hour bigint, unknown_hour bigint,
               paused_at timestamptz, pause_reason text, rate double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT b.waiting, b.in_flight - r.retrying, r.retrying, b.oldest_age,
           count(d.id) FILTER (WHERE d.outcome = 'sent' AND d.recent),
           count(d.id) FILTER (WHERE d.outcome = 'rejected' AND d.recent),
           count(d.id) FILTER (WHERE d.outcome = 'unknown' AND d.recent),
           count(d.id) FILTER (WHERE d.outcome = 'sent'),
           count(d.id) FILTER (WHERE d.outcome = 'rejected'),
           count(d.id) FILTER (WHERE d.outcome = 'unknown'),
           j.paused_at, j.pause_reason,
           (SELECT s.rate FROM mailroom.rates s WHERE s.job = j.job_type)
    FROM public.jobs j
    CROSS JOIN mailroom.backlog(p_queue) b
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(cardinality(l.tokens)), 0)::bigint AS retrying
        FROM mailroom.leases l WHERE l.job = j.job_type AND l.worker = '') r
    LEFT JOIN LATERAL (
        SELECT e.id, e.outcome, e.at > statement_timestamp() - interval '1 minute' AS recent
        FROM mailroom.deliveries e WHERE e.at > statement_timestamp() - interval '1 hour') d ON true
    WHERE j.job_type::text = p_queue
    GROUP BY j.job_type, b.waiting, b.in_flight, r.retrying, b.oldest_age
$$;

-- Since when and why the queue is paused: one row of NULLs when it is not, none for an unknown queue.
CREATE FUNCTION mailroom.paused(p_queue text) RETURNS TABLE (paused_at timestamptz, pause_reason text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT j.paused_at, j.pause_reason FROM public.jobs j WHERE j.job_type::text = p_queue
$$;

-- The last p_limit tokens of an account, newest first, by its address in any case or by its login; or
-- the one token whose id it is. An account without tokens is a row whose token is NULL; a token that
-- is gone, and of which the ledger or a lease still knows, is one whose action is NULL.
--
-- waits says that the cursor has not come to it. What never expires has no expires_at.
CREATE FUNCTION mailroom.tokens_of(p_queue text, p_who text, p_limit integer)
RETURNS TABLE (token bigint, action text, email text, login text, status text, status_changed_at timestamptz,
               needed_status text, created_at timestamptz, expires_at timestamptz, consumed_at timestamptz,
               hindrance text, waits boolean, lease_worker text, lease_generation integer,
               lease_due_at timestamptz, lease_is_due boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    wanted bigint[];
    named  bigint;
    owner  bigint;
BEGIN
    IF p_who ~ '^[0-9]{1,18}$' THEN
        named := p_who::bigint;
        IF EXISTS (SELECT FROM public.tokens t WHERE t.id = named)
           OR EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = named) THEN
            wanted := ARRAY[named];
        END IF;
    END IF;
    IF wanted IS NULL THEN
        SELECT a.id INTO owner FROM public.accounts a WHERE lower(a.email) = lower(p_who);
        IF owner IS NULL THEN
            SELECT a.id INTO owner FROM public.accounts a WHERE a.login = p_who;
        END IF;
        IF owner IS NULL THEN
            RETURN;
        END IF;
        wanted := ARRAY(SELECT t.id FROM public.tokens t WHERE t.account = owner
                        ORDER BY t.created_at DESC, t.id DESC LIMIT p_limit);
        IF cardinality(wanted) = 0 THEN
            wanted := ARRAY[NULL::bigint];
        END IF;
    END IF;
    RETURN QUERY
        SELECT w.id, t.action::text, a.email, a.login, a.status::text, a.status_changed_at,
               k.account_status::text, t.created_at, nullif(t.expires_at, 'infinity'), t.consumed_at,
               CASE WHEN w.id IS NOT NULL THEN mailroom.hindrance(w.id) END,
               coalesce(NOT pg_visible_in_snapshot(t.txid, j.low)
                        AND NOT (pg_visible_in_snapshot(t.txid, j.high)
                                 AND (t.txid, t.id) <= (j.last_txid, j.last_seq)), false),
               l.worker, l.generation, l.due_at, l.due_at <= clock_timestamp()
        FROM unnest(wanted) WITH ORDINALITY AS w (id, n)
        LEFT JOIN public.tokens t ON t.id = w.id
        LEFT JOIN public.accounts a ON a.id = coalesce(t.account, owner)
        LEFT JOIN mailroom.actions k ON k.action = t.action
        LEFT JOIN public.jobs j ON j.job_type::text = p_queue
        LEFT JOIN LATERAL (
            SELECT x.worker, x.generation, x.due_at FROM mailroom.leases x
            WHERE x.job = j.job_type AND w.id = ANY (x.tokens) LIMIT 1) l ON true
        ORDER BY w.n;
END $$;

-- What the ledger has of these tokens, in the order of its writing.
CREATE FUNCTION mailroom.deliveries_of(p_tokens bigint[])
RETURNS TABLE (token bigint, attempt integer, outcome text, result text, provider text, message_id text,
               detail text, worker text, at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT d.token, d.attempt, d.outcome, d.result, d.provider, d.message_id, d.detail, d.worker, d.at
    FROM mailroom.deliveries d WHERE d.token = ANY (p_tokens) ORDER BY d.id
$$;

-- Delete up to p_batch of the ledger's rows that are older; gives back how many. 0 is the end.
CREATE FUNCTION mailroom.prune_deliveries(p_older_than interval, p_batch integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH deleted AS (
        DELETE FROM mailroom.deliveries d
        WHERE d.id = ANY (ARRAY(
            SELECT o.id FROM mailroom.deliveries o WHERE o.at < statement_timestamp() - p_older_than
            ORDER BY o.at LIMIT p_batch FOR UPDATE SKIP LOCKED))
        RETURNING d.id)
    SELECT count(*) FROM deleted
$$;

-- Look at the p_batch tokens that follow p_after and delete those that have been expired or consumed
-- for longer and are in no lease. Gives back the last one looked at, NULL at the end, and how many
-- were deleted. A token that somebody has locked is left for the next time.
CREATE FUNCTION mailroom.prune_tokens(p_after bigint, p_older_than interval, p_batch integer)
RETURNS TABLE (last_seen bigint, deleted bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH seen AS (
        SELECT t.id FROM public.tokens t WHERE t.id > p_after ORDER BY t.id LIMIT p_batch
    ), old AS (
        SELECT t.id FROM public.tokens t
        WHERE t.id = ANY (ARRAY(SELECT s.id FROM seen s))
          AND (t.expires_at < statement_timestamp() - p_older_than
               OR t.consumed_at < statement_timestamp() - p_older_than)
          AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM public.tokens t WHERE t.id = ANY (ARRAY(SELECT o.id FROM old o)) RETURNING t.id)
    SELECT (SELECT max(s.id) FROM seen s), (SELECT count(*) FROM gone)
$$;

REVOKE EXECUTE ON FUNCTION
    mailroom.overview(text),
    mailroom.paused(text),
    mailroom.tokens_of(text, text, integer),
    mailroom.deliveries_of(bigint[]),
    mailroom.prune_deliveries(interval, integer),
    mailroom.prune_tokens(bigint, interval, integer)
FROM PUBLIC;
