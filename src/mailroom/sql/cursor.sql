-- The cursor: which tokens were handed out.
--
-- It is a window (low, high] of two snapshots and a position (last_txid, last_seq) in it. A token is pending if
-- high sees its transaction, low does not, and it lies behind the position. An empty window (low = high) moves
-- on to the current snapshot. Ids and clocks say in which order rows were made; only a snapshot says which were
-- visible. So a transaction that commits late is found when it commits, and delays no other.

CREATE TYPE public.job_type AS ENUM ('mailroom');

CREATE TABLE public.jobs (
    job_type          public.job_type PRIMARY KEY,
    low               pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    high              pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    low_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    high_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_txid         xid8        NOT NULL DEFAULT '0',
    last_seq          bigint      NOT NULL DEFAULT 0,
    system_identifier bigint      NOT NULL DEFAULT (pg_control_system()).system_identifier,
    moved_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_floor         timestamptz NOT NULL DEFAULT '-infinity',
    swept_at          timestamptz NOT NULL DEFAULT '-infinity',
    paused_at         timestamptz,
    pause_reason      text,
    -- A second cursor over the same tokens would mail each of them twice.
    CONSTRAINT jobs_one_queue_per_database CHECK (job_type = 'mailroom')
) WITH (fillfactor = 10);

-- The window is open to the left, so that tokens from before the queue existed are pending too.
INSERT INTO public.jobs (job_type, low) VALUES ('mailroom', '1:1:');

COMMENT ON TABLE public.jobs IS
    'The queue, which is one row: the cursor that says which tokens were handed out. A token is pending if the '
    'snapshot high sees its transaction, low does not, and it lies behind the position. A database has one '
    'queue.';
COMMENT ON COLUMN public.jobs.job_type IS 'The queue''s name, which is mailroom.';
COMMENT ON COLUMN public.jobs.low IS 'The snapshot before the window: what it sees was handed out.';
COMMENT ON COLUMN public.jobs.high IS 'The snapshot at the window''s end: what it does not see comes later.';
COMMENT ON COLUMN public.jobs.low_at IS
    'When the snapshot low was taken. A token that had expired by then never waited.';
COMMENT ON COLUMN public.jobs.high_at IS 'When the snapshot high was taken.';
COMMENT ON COLUMN public.jobs.last_txid IS
    'With last_seq the position in the window: the transaction of the last token handed out; 0 is the '
    'window''s beginning.';
COMMENT ON COLUMN public.jobs.last_seq IS 'The id of the last token handed out.';
COMMENT ON COLUMN public.jobs.system_identifier IS
    'The cluster whose transaction ids the snapshots name. In another cluster the next claim restarts the '
    'cursor.';
COMMENT ON COLUMN public.jobs.moved_at IS 'When a claim last moved the cursor.';
COMMENT ON COLUMN public.jobs.due_floor IS
    'The last claim found no lease due before this time; -infinity if it checked all leases.';
COMMENT ON COLUMN public.jobs.swept_at IS 'When a claim last checked all leases.';
COMMENT ON COLUMN public.jobs.paused_at IS 'When a person paused the queue; NULL if it is not paused.';
COMMENT ON COLUMN public.jobs.pause_reason IS 'The reason that this person gave.';

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

-- After a logical restore, or a move by logical replication, the stored window names transaction ids of another
-- cluster. The tokens that are unexpired, unconsumed and not known to have been handed out go into leases that
-- are due at once, and the window starts at the current snapshot. Not known to have been handed out are those
-- behind the old position and those made after the old cursor last moved, without those that the ledger has. The
-- txids of all tokens found here become 1, which each snapshot has seen, so that no later window finds them a
-- second time.
CREATE FUNCTION mailroom.restart_cursor(p_job public.jobs) RETURNS public.jobs
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    snapshot   pg_snapshot;
    found_here bigint[];
    unsettled  bigint[];
    restarted  public.jobs;
BEGIN
    -- One statement, so that the snapshot and the rows belong together.
    SELECT pg_current_snapshot(),
           array_agg(t.id ORDER BY t.created_at, t.id),
           array_agg(t.id ORDER BY t.created_at, t.id) FILTER (WHERE
               (t.created_at > p_job.moved_at
                OR NOT (pg_visible_in_snapshot(t.txid, p_job.low)
                        OR pg_visible_in_snapshot(t.txid, p_job.high)
                           AND (t.txid, t.id) <= (p_job.last_txid, p_job.last_seq)))
               AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
               AND NOT EXISTS (SELECT FROM mailroom.deliveries d
                               WHERE d.token = t.id AND mailroom.is_of(d.fingerprint, t.secret)))
    INTO snapshot, found_here, unsettled
    FROM public.tokens t
    WHERE t.consumed_at IS NULL AND t.expires_at > clock_timestamp();

    snapshot := mailroom.with_own_running(snapshot);
    UPDATE public.tokens SET txid = '1' WHERE id = ANY (found_here);
    INSERT INTO mailroom.leases (tokens, worker, generation, due_at)
    SELECT array_agg(u.id ORDER BY u.n), 'restore', 0, clock_timestamp()
    FROM unnest(unsettled) WITH ORDINALITY AS u (id, n) GROUP BY (u.n - 1) / 100;

    UPDATE public.jobs j
    SET low = snapshot, high = snapshot, low_at = n.now, high_at = n.now, last_txid = '0', last_seq = 0,
        system_identifier = (pg_control_system()).system_identifier, moved_at = n.now,
        due_floor = '-infinity', swept_at = '-infinity'
    FROM (SELECT clock_timestamp() AS now) n
    WHERE j.job_type = p_job.job_type
    RETURNING j.* INTO restarted;
    RAISE WARNING 'mailroom: the queue was restored from another cluster: the cursor starts anew, waiting tokens taken over: %',
        coalesce(cardinality(unsettled), 0);
    RETURN restarted;
END $$;
COMMENT ON FUNCTION mailroom.restart_cursor IS
    'Restarts the cursor in a cluster that the queue was restored into, puts the waiting tokens into leases, '
    'and returns the queue''s new row.';
