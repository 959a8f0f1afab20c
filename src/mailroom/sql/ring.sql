-- The doorbell: inserts notify the workers only while all of them are idle.
--
-- NOTIFY takes a lock of the whole cluster until the commit is done, so under load it would serialise commits.
-- The protocol, and the proof that no wake-up is lost, are in the module mailroom.queue.leader.

CREATE FUNCTION mailroom.sleep_lock(p_channel text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT hashtextextended('mailroom.sleep ' || p_channel, 0)
$$;
COMMENT ON FUNCTION mailroom.sleep_lock IS
    'Returns the key of the advisory lock that an idle worker of a channel holds to request notifications.';

CREATE FUNCTION mailroom.bell_lock(p_channel text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT hashtextextended('mailroom.bell ' || p_channel, 0)
$$;
COMMENT ON FUNCTION mailroom.bell_lock IS
    'Returns the key of the advisory lock that the worker holds which answers a channel''s notifications.';

-- A session that waits for a lock holds a snapshot, so it waits briefly. It waits for less than deadlock_timeout too,
-- after which the server may log that it waits (log_lock_waits). The exception ends only the wait.
CREATE FUNCTION mailroom.request_sleep(p_channel text, p_wait_ms integer) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    deadlock_ms CONSTANT double precision := 1000 * extract(epoch FROM current_setting('deadlock_timeout')::interval);
BEGIN
    PERFORM set_config('lock_timeout', greatest(least(p_wait_ms, floor(0.8 * deadlock_ms)), 1)::text, true);
    PERFORM pg_advisory_lock(mailroom.sleep_lock(p_channel));
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    -- The lock may have been granted in the moment in which the wait ended. Then the session has it: the
    -- exception releases no lock of a session.
    RETURN EXISTS (SELECT FROM pg_locks l
                   WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory' AND l.granted
                     AND l.mode = 'ExclusiveLock'
                     AND (l.classid::bigint << 32 | l.objid::bigint) = mailroom.sleep_lock(p_channel));
END $$;
COMMENT ON FUNCTION mailroom.request_sleep IS
    'Takes the lock of mailroom.sleep_lock, for which it waits this long; returns whether it did.';

-- If the lock is refused, a worker is idle or about to be: notify. If it is granted, the transaction keeps it
-- until it is committed and visible, and a worker that wants to be idle waits for that. An insert that need
-- not notify costs one expression. It runs with the search_path of the user that inserts, so it names its
-- schemas. The key is that of mailroom.sleep_lock.
CREATE FUNCTION mailroom.ring() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    inserted_count pg_catalog.int8;
BEGIN
    IF NOT pg_catalog.pg_try_advisory_xact_lock_shared(
               pg_catalog.hashtextextended(pg_catalog.concat('mailroom.sleep ', TG_ARGV[0]), 0)) THEN
        SELECT pg_catalog.count(*) INTO inserted_count FROM inserted;
        IF inserted_count OPERATOR(pg_catalog.>) 0 THEN
            PERFORM pg_catalog.pg_notify(TG_ARGV[0], inserted_count::pg_catalog.text);
        END IF;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION mailroom.ring IS
    'Notifies the channel, its argument, of how many tokens a statement inserted, if a worker is idle.';

CREATE TRIGGER tokens_ring AFTER INSERT ON tokens
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION mailroom.ring('token_insert');
