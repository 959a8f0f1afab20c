-- What the queue's page asks, every second while somebody looks: each function looks at a bounded number
-- of rows, however much waits and however long the ledger is. Nothing here gives out a secret or a code.

-- For how many seconds the oldest mail of a queue has been asked for that is not settled, whether or not
-- the queue is paused; NULL when there is none. It looks at the first p_most tokens in the order of the
-- cursor, as mailroom.pulse does, and at the first p_most in the order of the leases.
CREATE FUNCTION mailroom.oldest_age(p_queue text, p_most integer) RETURNS double precision
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    job    public.jobs;
    waits  timestamptz;
    leased timestamptz;
BEGIN
    SELECT * INTO job FROM public.jobs j WHERE j.job_type::text = p_queue;
    SELECT min(p.created_at) INTO waits FROM (
        (SELECT t.created_at, t.account, t.action, t.consumed_at, t.expires_at
         FROM public.tokens t
         WHERE t.txid = ANY (ARRAY(SELECT pg_snapshot_xip(job.low) UNION SELECT pg_snapshot_xip(job.high)))
           AND NOT pg_visible_in_snapshot(t.txid, job.low)
           AND NOT (pg_visible_in_snapshot(t.txid, job.high) AND (t.txid, t.id) <= (job.last_txid, job.last_seq))
         LIMIT p_most)
        UNION ALL
        (SELECT t.created_at, t.account, t.action, t.consumed_at, t.expires_at
         FROM public.tokens t
         WHERE t.txid >= pg_snapshot_xmax(job.low) AND (t.txid, t.id) > (job.last_txid, job.last_seq)
         ORDER BY t.txid, t.id LIMIT p_most)) p
    JOIN public.accounts a ON a.id = p.account
    JOIN mailroom.actions k ON k.action = p.action AND k.account_status = a.status
    WHERE p.consumed_at IS NULL AND p.expires_at > clock_timestamp();

    SELECT min(t.created_at) INTO leased
    FROM (SELECT u.id FROM (SELECT l.tokens FROM mailroom.leases l WHERE l.job = job.job_type
                            ORDER BY l.id LIMIT p_most) l, unnest(l.tokens) u (id) LIMIT p_most) h
    JOIN public.tokens t ON t.id = h.id;
    RETURN extract(epoch FROM clock_timestamp() - least(waits, leased));
END $$;

-- What became of attempts: the ledger's rows of the last p_span, counted by intervals of p_step seconds
-- that start at whole multiples of it, oldest first, the last one being the present. dropped is what
-- expired or was skipped. It counts the newest p_most rows: when that is the sum of all, the first
-- interval that has any may lack some, and what is before it was not looked at.
CREATE FUNCTION mailroom.traffic(p_span interval, p_step integer, p_most integer)
RETURNS TABLE (at timestamptz, sent bigint, retried bigint, unknown bigint, rejected bigint, dropped bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
    WITH bounds AS MATERIALIZED (
        SELECT floor(extract(epoch FROM n.now - p_span) / p_step)::bigint AS first,
               floor(extract(epoch FROM n.now) / p_step)::bigint AS last
        FROM (SELECT clock_timestamp() AS now) n
    ), newest AS MATERIALIZED (
        SELECT d.at, d.outcome FROM mailroom.deliveries d
        WHERE d.at >= to_timestamp((SELECT b.first * p_step FROM bounds b))
        ORDER BY d.at DESC LIMIT p_most
    ), counted AS (
        SELECT floor(extract(epoch FROM e.at) / p_step)::bigint AS number,
               count(*) FILTER (WHERE e.outcome = 'sent') AS sent,
               count(*) FILTER (WHERE e.outcome = 'retried') AS retried,
               count(*) FILTER (WHERE e.outcome = 'unknown') AS unknown,
               count(*) FILTER (WHERE e.outcome = 'rejected') AS rejected,
               count(*) FILTER (WHERE e.outcome IN ('expired', 'skipped')) AS dropped
        FROM newest e GROUP BY 1)
    SELECT to_timestamp(i.number * p_step), coalesce(c.sent, 0), coalesce(c.retried, 0),
           coalesce(c.unknown, 0), coalesce(c.rejected, 0), coalesce(c.dropped, 0)
    FROM bounds b CROSS JOIN generate_series(b.first, b.last) AS i (number)
    LEFT JOIN counted c ON c.number = i.number
    ORDER BY i.number
$$;

-- The ledger's first and last row; NULLs when it is empty.
CREATE FUNCTION mailroom.ledger_ends(OUT first bigint, OUT last bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT (SELECT d.id FROM mailroom.deliveries d ORDER BY d.id LIMIT 1),
           (SELECT d.id FROM mailroom.deliveries d ORDER BY d.id DESC LIMIT 1)
$$;

-- The ledger's rows before p_before, newest first, of one outcome or (NULL) of any; of the p_look ids
-- before it. A token that was deleted has no action.
--
-- It must walk the primary key and probe the rest, whatever the planner believes: hence the settings.
CREATE FUNCTION mailroom.recent_deliveries(p_outcome text, p_before bigint, p_look bigint, p_limit integer)
RETURNS TABLE (id bigint, token bigint, action text, email text, login text, attempt integer, outcome text,
               result text, provider text, message_id text, detail text, worker text, at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
    SELECT d.id, d.token, t.action::text, a.email, a.login, d.attempt, d.outcome,
           d.result, d.provider, d.message_id, d.detail, d.worker, d.at
    FROM mailroom.deliveries d
    LEFT JOIN public.tokens t ON t.id = d.token
    LEFT JOIN public.accounts a ON a.id = t.account
    WHERE d.id < p_before AND d.id >= p_before - p_look
      AND (p_outcome IS NULL OR d.outcome = p_outcome)
    ORDER BY d.id DESC LIMIT p_limit
$$;

REVOKE EXECUTE ON FUNCTION
    mailroom.oldest_age(text, integer),
    mailroom.traffic(interval, integer, integer),
    mailroom.ledger_ends(),
    mailroom.recent_deliveries(text, bigint, bigint, integer)
FROM PUBLIC;
