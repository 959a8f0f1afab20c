-- Restores without the cursor.
--
-- A restore of rows alone (pg_restore --data-only --disable-triggers) into a migrated database keeps that
-- database's cursor, which says nothing about the restored tokens. The next claim cannot notice it: the cluster's
-- identifier is right. Restored tokens lie in its window only where the cursor has not moved since the migration,
-- which began at 1. After a failover the ledger can rightly have a token that waits.
CREATE FUNCTION mailroom.misplaced_tokens() RETURNS TABLE (unreachable bigint, repeated bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    SELECT (SELECT count(*) FROM public.tokens t
            WHERE t.txid >= pg_snapshot_xmax(pg_current_snapshot())
              AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp()
              AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)),
           (SELECT count(DISTINCT t.id)
            FROM (SELECT x.token, x.fingerprint FROM mailroom.deliveries x ORDER BY x.id DESC LIMIT 1000) d
            JOIN public.tokens t ON t.id = d.token AND mailroom.is_of(d.fingerprint, t.secret)
            JOIN mailroom.cursors c ON c.lane = t.lane
            WHERE t.consumed_at IS NULL AND t.expires_at > clock_timestamp()
              AND pg_snapshot_xmax(c.low) = '1' AND pg_visible_in_snapshot(t.txid, c.high)
              AND NOT pg_visible_in_snapshot(t.txid, c.low)
              AND (t.txid, t.id) > (c.last_txid, c.last_seq)
              AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l))
    FROM public.jobs j
    WHERE j.system_identifier = (pg_control_system()).system_identifier
$$;
COMMENT ON FUNCTION mailroom.misplaced_tokens IS
    'Returns how many valid tokens a restore without the cursor misplaced: unreachable have transaction ids that '
    'this cluster has not given out, so they would not be mailed; repeated are in the newest 1,000 rows of the '
    'ledger and would be mailed again. No row if the next claim restarts the cursor anyway.';

CREATE FUNCTION mailroom.take_over() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    job public.jobs;
BEGIN
    SELECT * INTO STRICT job FROM public.jobs j FOR NO KEY UPDATE;
    PERFORM mailroom.restart_cursor(job.moved_at);
END $$;
COMMENT ON FUNCTION mailroom.take_over IS
    'Takes over tokens after a restore without the cursor: valid ones that the cursor has not passed and the '
    'ledger does not have will be mailed.';
