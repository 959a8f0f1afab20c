-- The workers of `mailroom run`, each of which reports every few seconds.

-- Rows are updated in place: no index holds what changes, and the pages have room.
CREATE TABLE mailroom.workers (
    worker        text PRIMARY KEY,
    version       text        NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    trouble       text        NOT NULL DEFAULT '',
    trouble_since timestamptz,
    events_trouble       text NOT NULL DEFAULT '',
    events_trouble_since timestamptz
) WITH (fillfactor = 10);

COMMENT ON TABLE mailroom.workers IS 'The workers of `mailroom run`, each of which reports every few seconds.';
COMMENT ON COLUMN mailroom.workers.worker IS 'The worker''s name, as in leases and the ledger.';
COMMENT ON COLUMN mailroom.workers.version IS 'The worker''s version of Mailroom.';
COMMENT ON COLUMN mailroom.workers.started_at IS 'When it first reported.';
COMMENT ON COLUMN mailroom.workers.seen_at IS 'When it last reported.';
COMMENT ON COLUMN mailroom.workers.trouble IS 'What keeps it from sending; empty if nothing does.';
COMMENT ON COLUMN mailroom.workers.trouble_since IS 'When that began.';
COMMENT ON COLUMN mailroom.workers.events_trouble IS
    'What keeps it from reading SES''s events; empty if nothing does, or if it reads none.';
COMMENT ON COLUMN mailroom.workers.events_trouble_since IS 'When that began.';

CREATE FUNCTION mailroom.heartbeat(p_worker text, p_version text, p_trouble text, p_events_trouble text DEFAULT '')
RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT mailroom.fail_unrendered();
    INSERT INTO mailroom.workers AS w (worker, version, trouble, trouble_since, events_trouble, events_trouble_since)
    VALUES (p_worker, p_version, p_trouble, CASE WHEN p_trouble <> '' THEN clock_timestamp() END,
            p_events_trouble, CASE WHEN p_events_trouble <> '' THEN clock_timestamp() END)
    ON CONFLICT (worker) DO UPDATE
    SET version = excluded.version, seen_at = clock_timestamp(), trouble = excluded.trouble,
        trouble_since = CASE WHEN excluded.trouble <> '' THEN coalesce(w.trouble_since, excluded.trouble_since) END,
        events_trouble = excluded.events_trouble,
        events_trouble_since = CASE WHEN excluded.events_trouble <> ''
                                    THEN coalesce(w.events_trouble_since, excluded.events_trouble_since) END;
    DELETE FROM mailroom.workers w WHERE w.worker IN (
        SELECT o.worker FROM mailroom.workers o WHERE o.seen_at < clock_timestamp() - interval '1 day'
        FOR UPDATE SKIP LOCKED);
$$;
COMMENT ON FUNCTION mailroom.heartbeat IS
    'Reports that a worker is alive, and what keeps it from sending and from reading events (empty if nothing does). Removes workers '
    'that have not reported for a day. Rejects mails that SES could not render, and were recorded after its event.';

CREATE FUNCTION mailroom.leave(p_worker text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    DELETE FROM mailroom.workers w WHERE w.worker = p_worker
$$;
COMMENT ON FUNCTION mailroom.leave IS 'Removes a worker that has stopped in good order.';

CREATE FUNCTION mailroom.recent_workers()
RETURNS TABLE (worker text, version text, alive boolean, started_at timestamptz, seen_at timestamptz,
               up double precision, silent double precision, leases bigint, tokens bigint,
               trouble text, trouble_since timestamptz, events_trouble text, events_trouble_since timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT w.worker, w.version, w.seen_at > n.now - interval '15 seconds', w.started_at, w.seen_at,
           extract(epoch FROM n.now - w.started_at)::double precision,
           extract(epoch FROM n.now - w.seen_at)::double precision,
           coalesce(h.leases, 0), coalesce(h.tokens, 0), w.trouble, w.trouble_since, w.events_trouble,
           w.events_trouble_since
    FROM (SELECT clock_timestamp() AS now) n
    JOIN mailroom.workers w ON w.seen_at > n.now - interval '1 hour'
    LEFT JOIN (SELECT l.worker, count(*) AS leases, sum(cardinality(l.tokens))::bigint AS tokens
               FROM mailroom.leases l GROUP BY l.worker) h ON h.worker = w.worker
    ORDER BY w.started_at, w.worker
$$;
COMMENT ON FUNCTION mailroom.recent_workers IS
    'Returns the workers that reported in the last hour, the oldest first: which are alive (reported in the '
    'last 15 s), what they hold, and what keeps them from sending and from reading events. up and silent are in seconds.';
