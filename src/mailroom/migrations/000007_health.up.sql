-- What health and metrics ask, so often that it must cost little however much waits.

-- How the queue is, in one row (none for an unknown queue). It looks at the first p_most tokens behind
-- the cursor, in its order: waiting is how many of them may be mailed, or p_most, which is that or more,
-- when there may be others behind. oldest_due is for how many seconds the oldest mail has waited that
-- could be on its way: since it was asked for, or since its lease was due. oldest_unsettled is since when,
-- in seconds, the oldest mail was asked for that waits or is in a lease, of which it looks at the first
-- p_most tokens, whether or not the queue is paused. When all that it looked at and that waits may not be
-- mailed any more, and there may be others behind, the newest that it saw stands for them.
CREATE FUNCTION mailroom.pulse(p_queue text, p_most integer)
RETURNS TABLE (waiting bigint, in_flight bigint, retrying bigint, oldest_due double precision,
               is_paused boolean, rate double precision, oldest_unsettled double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    job        public.jobs;
    seen       bigint;
    newest     timestamptz;
    first      timestamptz;
    due        timestamptz;
    leased     timestamptz;
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
    WITH looked AS MATERIALIZED (
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
        LIMIT p_most)
    SELECT (SELECT count(*) FROM looked), (SELECT max(s.created_at) FROM looked s), count(*), min(p.created_at)
    INTO seen, newest, waiting, first
    FROM looked p
    JOIN public.accounts a ON a.id = p.account
    JOIN mailroom.actions k ON k.action = p.action AND k.account_status = a.status
    WHERE p.consumed_at IS NULL AND p.expires_at > clock_timestamp();
    IF seen >= p_most THEN
        waiting := p_most;
        first := coalesce(first, newest);
    END IF;

    SELECT coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker <> ''), 0),
           coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker = ''), 0),
           min(l.due_at)
    INTO in_flight, retrying, due FROM mailroom.leases l WHERE l.job = job.job_type;

    SELECT min(t.created_at) INTO leased
    FROM (SELECT u.id FROM (SELECT l.tokens FROM mailroom.leases l WHERE l.job = job.job_type
                            ORDER BY l.id LIMIT p_most) l, unnest(l.tokens) u (id) LIMIT p_most) h
    JOIN public.tokens t ON t.id = h.id
    JOIN public.accounts a ON a.id = t.account
    JOIN mailroom.actions k ON k.action = t.action AND k.account_status = a.status
    WHERE t.consumed_at IS NULL AND t.expires_at > clock_timestamp();
    oldest_unsettled := extract(epoch FROM clock_timestamp() - least(first, leased));

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
