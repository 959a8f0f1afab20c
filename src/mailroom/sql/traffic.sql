-- What the console asks each second while somebody views it. Each function reads a bounded number of rows,
-- however long the ledger is. Nothing here returns a secret or a code.

CREATE FUNCTION mailroom.traffic(p_span interval, p_step integer, p_most integer)
RETURNS TABLE (at timestamptz, sent bigint, retried bigint, unknown bigint, rejected bigint, dropped bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
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
               count(*) FILTER (WHERE e.outcome IN ('expired', 'skipped', 'suppressed')) AS dropped
        FROM newest e GROUP BY 1)
    SELECT to_timestamp(i.number * p_step), coalesce(c.sent, 0), coalesce(c.retried, 0),
           coalesce(c.unknown, 0), coalesce(c.rejected, 0), coalesce(c.dropped, 0)
    FROM bounds b CROSS JOIN generate_series(b.first, b.last) AS i (number)
    LEFT JOIN counted c ON c.number = i.number
    ORDER BY i.number
$$;
COMMENT ON FUNCTION mailroom.traffic IS
    'Counts the ledger''s rows of the last p_span by outcome and by intervals of p_step seconds, which begin at '
    'whole multiples of it, oldest first; the last one is the present. dropped counts expired, skipped and suppressed. It '
    'counts the newest p_most rows: if it finds that many, the first interval with any may lack some.';

CREATE FUNCTION mailroom.ledger_ends(OUT first bigint, OUT last bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT (SELECT d.id FROM mailroom.deliveries d ORDER BY d.id LIMIT 1),
           (SELECT d.id FROM mailroom.deliveries d ORDER BY d.id DESC LIMIT 1)
$$;
COMMENT ON FUNCTION mailroom.ledger_ends IS
    'Returns the ids of the ledger''s first and last row; NULLs if it is empty.';

-- The settings make it walk the primary key and probe the rest, whatever the planner believes.
CREATE FUNCTION mailroom.recent_deliveries(p_outcome text, p_before bigint, p_look bigint, p_limit integer)
RETURNS TABLE (id bigint, token bigint, action text, email text, login text, subject text, attempt integer, outcome text,
               result text, provider text, message_id text, detail text, worker text, at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
    SELECT d.id, d.token, t.action::text, coalesce(nullif(d.recipient, ''), t.email), t.login,
           coalesce(t.subject, nullif(d.subject, '')), d.attempt, d.outcome, d.result, d.provider, d.message_id, d.detail, d.worker, d.at
    FROM mailroom.deliveries d
    LEFT JOIN public.tokens t ON t.id = d.token AND mailroom.is_of(d.fingerprint, t.secret)
    WHERE d.id < p_before AND d.id >= p_before - p_look
      AND (p_outcome IS NULL OR d.outcome = p_outcome)
    ORDER BY d.id DESC LIMIT p_limit
$$;
COMMENT ON FUNCTION mailroom.recent_deliveries IS
    'Returns the ledger''s rows before the id p_before, newest first, of one outcome, or of any if it is NULL; it '
    'reads the p_look ids before p_before. A deleted token has no action.';
