-- Deleting what is old, in batches. An age below zero counts as zero: it would delete tokens that are still valid.

CREATE FUNCTION mailroom.prune_deliveries(p_older_than interval, p_batch integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH deleted AS (
        DELETE FROM mailroom.deliveries d
        WHERE d.id = ANY (ARRAY(
            SELECT o.id FROM mailroom.deliveries o
            WHERE o.at < statement_timestamp() - greatest(p_older_than, '0')
            ORDER BY o.at LIMIT p_batch FOR UPDATE SKIP LOCKED))
        RETURNING d.id)
    SELECT count(*) FROM deleted
$$;
COMMENT ON FUNCTION mailroom.prune_deliveries IS
    'Deletes up to p_batch of the ledger''s rows that are older, and returns how many; 0 means that none is left.';

CREATE FUNCTION mailroom.prune_events(p_older_than interval, p_batch integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH deleted AS (
        DELETE FROM mailroom.events e
        WHERE e.id = ANY (ARRAY(
            SELECT o.id FROM mailroom.events o
            WHERE o.received_at < statement_timestamp() - greatest(p_older_than, '0')
            ORDER BY o.received_at LIMIT p_batch FOR UPDATE SKIP LOCKED))
        RETURNING e.id
    ), unreadable AS (
        DELETE FROM mailroom.unreadable_events u
        WHERE u.id = ANY (ARRAY(
            SELECT o.id FROM mailroom.unreadable_events o
            WHERE o.received_at < statement_timestamp() - greatest(p_older_than, '0')
            ORDER BY o.received_at LIMIT p_batch FOR UPDATE SKIP LOCKED))
        RETURNING u.id)
    SELECT (SELECT count(*) FROM deleted) + (SELECT count(*) FROM unreadable)
$$;
COMMENT ON FUNCTION mailroom.prune_events IS
    'Deletes up to p_batch events that are older, and as many messages that could not be read, and returns how many; 0 '
    'means that none is left. Suppressions stay.';

CREATE FUNCTION mailroom.prune_tokens(p_after bigint, p_older_than interval, p_batch integer)
RETURNS TABLE (last_seen bigint, deleted bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH seen AS (
        SELECT t.id FROM public.tokens t WHERE t.id > p_after ORDER BY t.id LIMIT p_batch
    ), old AS (
        SELECT t.id FROM public.tokens t
        WHERE t.id = ANY (ARRAY(SELECT s.id FROM seen s))
          -- One to an address that cannot be mailed never had a life. Correcting the address needs it.
          AND (coalesce(nullif(t.expires_at, 'epoch'), t.created_at)
                   < statement_timestamp() - greatest(p_older_than, '0')
               OR t.consumed_at < statement_timestamp() - greatest(p_older_than, '0'))
          AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM public.tokens t WHERE t.id = ANY (ARRAY(SELECT o.id FROM old o)) RETURNING t.id)
    SELECT (SELECT max(s.id) FROM seen s), (SELECT count(*) FROM gone)
$$;
COMMENT ON FUNCTION mailroom.prune_tokens IS
    'Checks the p_batch tokens that follow the id p_after, and deletes those that have been expired or consumed '
    'for longer and are in no lease. A locked token is skipped. Returns the last one checked, NULL at the end, '
    'and how many were deleted.';
