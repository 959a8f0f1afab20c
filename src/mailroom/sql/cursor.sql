-- The cursors: which tokens were handed out, one cursor for each lane.
--
-- A cursor is a window (low, high] of two snapshots and a position (last_txid, last_seq) in it. A token of its lane
-- is pending if high sees its transaction, low does not, and it lies behind the position. An empty window (low =
-- high) moves on to the current snapshot. Ids and clocks say in which order rows were made; only a snapshot says
-- which were visible. So a transaction that commits late is found when it commits, and delays no other.

CREATE TYPE job_type AS ENUM ('mailroom');

CREATE TABLE jobs (
    job_type          job_type PRIMARY KEY,
    system_identifier bigint      NOT NULL DEFAULT (pg_control_system()).system_identifier,
    moved_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    swept_at          timestamptz NOT NULL DEFAULT '-infinity',
    paused_at         timestamptz,
    pause_reason      text,
    -- A second queue over the same tokens would mail each of them twice.
    CONSTRAINT jobs_one_queue_per_database CHECK (job_type = 'mailroom')
) WITH (fillfactor = 10);

INSERT INTO jobs (job_type) VALUES ('mailroom');

COMMENT ON TABLE jobs IS
    'The queue, which is one row. A claim locks it, so that one claim at a time moves the cursors. A database has '
    'one queue.';
COMMENT ON COLUMN jobs.job_type IS 'The queue''s name, which is mailroom.';
COMMENT ON COLUMN jobs.system_identifier IS
    'The cluster whose transaction ids the cursors name. In another cluster the next claim restarts them.';
COMMENT ON COLUMN jobs.moved_at IS 'When a claim last moved the cursors.';
COMMENT ON COLUMN jobs.swept_at IS 'When a claim last checked all leases.';
COMMENT ON COLUMN jobs.paused_at IS 'When a person paused the queue; NULL if it is not paused.';
COMMENT ON COLUMN jobs.pause_reason IS 'The reason that this person gave.';

CREATE TABLE mailroom.cursors (
    lane      mailroom.lane PRIMARY KEY,
    low       pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    high      pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    low_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    high_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_txid xid8        NOT NULL DEFAULT '0',
    last_seq  bigint      NOT NULL DEFAULT 0,
    due_floor timestamptz NOT NULL DEFAULT '-infinity',
    owed      integer     NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

-- The windows are open to the left, so that tokens from before the queue existed are pending too.
INSERT INTO mailroom.cursors (lane, low)
SELECT l, '1:1:' FROM pg_catalog.unnest(pg_catalog.enum_range(NULL::mailroom.lane)) l;

COMMENT ON TABLE mailroom.cursors IS
    'For each lane the cursor that says which tokens were handed out. A token is pending if the snapshot high sees '
    'its transaction, low does not, and it lies behind the position.';
COMMENT ON COLUMN mailroom.cursors.lane IS 'The lane.';
COMMENT ON COLUMN mailroom.cursors.low IS 'The snapshot before the window: what it sees was handed out.';
COMMENT ON COLUMN mailroom.cursors.high IS 'The snapshot at the window''s end: what it does not see comes later.';
COMMENT ON COLUMN mailroom.cursors.low_at IS
    'When the snapshot low was taken. A token that had expired by then never waited.';
COMMENT ON COLUMN mailroom.cursors.high_at IS 'When the snapshot high was taken.';
COMMENT ON COLUMN mailroom.cursors.last_txid IS
    'With last_seq the position in the window: the transaction of the last token handed out; 0 is the '
    'window''s beginning.';
COMMENT ON COLUMN mailroom.cursors.last_seq IS 'The id of the last token handed out.';
COMMENT ON COLUMN mailroom.cursors.due_floor IS
    'The last claim found no lease of the lane due before this time; -infinity if it checked all of them.';
COMMENT ON COLUMN mailroom.cursors.owed IS
    'In tenths of a mail: what the lane still has to get of its tenth, while the lanes before it do not end.';

-- The cursors find a token by its lane and its transaction.
CREATE FUNCTION mailroom.keep_lane() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'mailroom: the lane of a token cannot be changed: a cursor may have passed it'
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Give the lane when the token is inserted.';
END $$;
COMMENT ON FUNCTION mailroom.keep_lane IS 'Refuses to change the lane of a token, which its cursor may have passed.';

CREATE TRIGGER tokens_keep_lane BEFORE UPDATE OF lane ON tokens
    FOR EACH ROW WHEN (OLD.lane IS DISTINCT FROM NEW.lane) EXECUTE FUNCTION mailroom.keep_lane();

-- PostgreSQL leaves the current transaction out of the list of running ones, so pg_visible_in_snapshot may call
-- it ended. A token that it inserts after its claim would then lie behind the cursor for ever.
CREATE FUNCTION mailroom.with_own_running(p_snapshot pg_snapshot) RETURNS pg_snapshot
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own xid8 := pg_current_xact_id();
BEGIN
    IF NOT pg_visible_in_snapshot(own, p_snapshot) THEN
        RETURN p_snapshot;
    END IF;
    RETURN format('%s:%s:%s', least(own, pg_snapshot_xmin(p_snapshot)), pg_snapshot_xmax(p_snapshot),
                  (SELECT string_agg(x::text, ',' ORDER BY x)
                   FROM (SELECT pg_snapshot_xip(p_snapshot) UNION SELECT own) running (x)))::pg_snapshot;
END $$;
COMMENT ON FUNCTION mailroom.with_own_running IS
    'Returns a snapshot of the current transaction with that transaction among the running ones.';

-- After a logical restore, or a move by logical replication, the stored windows name transaction ids of another
-- cluster. The tokens that are unexpired (or may be renewed), unconsumed and not known to have been handed out go into
-- leases that are due at once, and the windows start at the current snapshot. Not known to have been handed out are those
-- behind the old position and those made after the old cursors last moved, without those that the ledger has. The
-- txids of all tokens found here become 1, which each snapshot has seen, so that no later window finds them a
-- second time; older ones that have expired are renewed by no claim.
CREATE FUNCTION mailroom.restart_cursor(p_moved_at timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    snapshot   pg_snapshot;
    found_here bigint[];
    unsettled  bigint[];
BEGIN
    -- One statement, so that the snapshot and the rows belong together.
    SELECT pg_current_snapshot(),
           array_agg(t.id ORDER BY t.created_at, t.id),
           array_agg(t.id ORDER BY t.created_at, t.id) FILTER (WHERE
               (t.created_at > p_moved_at
                OR NOT coalesce(pg_visible_in_snapshot(t.txid, c.low)
                                OR pg_visible_in_snapshot(t.txid, c.high)
                                   AND (t.txid, t.id) <= (c.last_txid, c.last_seq), false))
               AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
               AND NOT EXISTS (SELECT FROM mailroom.deliveries d
                               WHERE d.token = t.id AND mailroom.is_of(d.fingerprint, t.secret))
               AND (t.expires_at > clock_timestamp() OR t.expires_at > p_moved_at AND mailroom.renewable(t)))
    INTO snapshot, found_here, unsettled
    FROM public.tokens t
    LEFT JOIN mailroom.cursors c ON c.lane = t.lane
    WHERE t.consumed_at IS NULL
      AND (t.expires_at > clock_timestamp() OR t.created_at > clock_timestamp() - interval '2 days');

    snapshot := mailroom.with_own_running(snapshot);
    UPDATE public.tokens SET txid = '1' WHERE id = ANY (found_here);
    INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)
    SELECT o.lane, array_agg(o.id ORDER BY o.n), 'restore', 0, clock_timestamp()
    FROM (SELECT t.lane, u.id, u.n, row_number() OVER (PARTITION BY t.lane ORDER BY u.n) AS in_lane
          FROM unnest(unsettled) WITH ORDINALITY AS u (id, n) JOIN public.tokens t ON t.id = u.id) o
    GROUP BY o.lane, (o.in_lane - 1) / 100;

    UPDATE mailroom.cursors c
    SET low = snapshot, high = snapshot, low_at = n.now, high_at = n.now, last_txid = '0', last_seq = 0,
        due_floor = '-infinity', owed = 0
    FROM (SELECT clock_timestamp() AS now) n;
    UPDATE public.jobs j
    SET system_identifier = (pg_control_system()).system_identifier, moved_at = clock_timestamp(),
        swept_at = '-infinity';
    RAISE WARNING 'mailroom: the queue was restored from another cluster: the cursor starts anew, waiting tokens taken over: %',
        coalesce(cardinality(unsettled), 0);
END $$;
COMMENT ON FUNCTION mailroom.restart_cursor IS
    'Restarts the cursors in a cluster that the queue was restored into, and puts the waiting tokens into leases. '
    'p_moved_at is when the old ones last moved.';
