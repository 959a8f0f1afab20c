-- What health and metrics ask, so often that it must cost little however much waits.

-- How the queue is, in one row (none for an unknown queue). Of what waits it looks at the first
-- p_most tokens in the order of the cursor: waiting is their number, and more may wait when it is
-- p_most. oldest_due is for how many seconds the oldest mail has waited that could be on its way: since
-- it was asked for, or since its lease was due.
CREATE FUNCTION mailroom.pulse(p_queue text, p_most integer)
RETURNS TABLE (waiting bigint, in_flight bigint, retrying bigint, oldest_due double precision,
               is_paused boolean, rate double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    job        public.jobs;
    first      timestamptz;
    due        timestamptz;
    after_txid xid8;
    after_id   bigint;
BEGIN
    SELECT * INTO job FROM public.jobs j WHERE j.job_type::text = p_queue;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Where the walk of the index begins, as in claim.
    IF job.last_txid >= pg_snapshot_xmax(job.low) THEN
        after_txid := job.last_txid;
        after_id := job.last_seq;
    ELSE
        after_txid := pg_snapshot_xmax(job.low);
        after_id := -9223372036854775808;
    END IF;
    -- Pending is what low does not see, but for what high sees up to the position: the stragglers of
    -- both snapshots by name, and the range behind.
    SELECT count(*), min(p.created_at) INTO waiting, first FROM (
        SELECT t.created_at, t.account, t.action, t.consumed_at, t.expires_at
        FROM public.tokens t
        WHERE t.txid = ANY (ARRAY(SELECT pg_snapshot_xip(job.low)))
          AND NOT (pg_visible_in_snapshot(t.txid, job.high) AND (t.txid, t.id) <= (job.last_txid, job.last_seq))
        UNION ALL
        SELECT t.created_at, t.account, t.action, t.consumed_at, t.expires_at
        FROM public.tokens t
        WHERE t.txid = ANY (ARRAY(SELECT pg_snapshot_xip(job.high)))
          AND t.txid >= pg_snapshot_xmax(job.low) AND (t.txid, t.id) <= (job.last_txid, job.last_seq)
        UNION ALL
        (SELECT t.created_at, t.account, t.action, t.consumed_at, t.expires_at
         FROM public.tokens t
         WHERE (t.txid, t.id) > (after_txid, after_id)
         ORDER BY t.txid, t.id LIMIT p_most)
        LIMIT p_most) p
    JOIN public.accounts a ON a.id = p.account
    JOIN mailroom.actions k ON k.action = p.action AND k.account_status = a.status
    WHERE p.consumed_at IS NULL AND p.expires_at > clock_timestamp();

    SELECT coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker <> ''), 0),
           coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker = ''), 0),
           min(l.due_at)
    INTO in_flight, retrying, due FROM mailroom.leases l WHERE l.job = job.job_type;

    is_paused := job.paused_at IS NOT NULL;
    IF NOT is_paused THEN
        oldest_due := greatest(extract(epoch FROM clock_timestamp() - least(first, due)), 0);
    END IF;
    rate := (SELECT r.rate FROM mailroom.rates r WHERE r.job = job.job_type);
    RETURN NEXT;
END $$;

-- For how many seconds a token has been there; NULL when it is gone.
CREATE FUNCTION mailroom.age(p_token bigint) RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT extract(epoch FROM clock_timestamp() - t.created_at)::double precision
    FROM public.tokens t WHERE t.id = p_token
$$;

REVOKE EXECUTE ON FUNCTION mailroom.pulse(text, integer), mailroom.age(bigint) FROM PUBLIC;
