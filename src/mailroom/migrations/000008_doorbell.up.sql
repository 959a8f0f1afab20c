-- The doorbell: producers ring only a sleeper. NOTIFY holds a lock of the whole cluster over the commit,
-- so that a stream of them would let one commit after the other wait. The protocol, and why no wake-up
-- can be lost, stands at the head of the program's module `doorbell`.

-- The advisory lock by which a channel's collectors show that they sleep.
CREATE FUNCTION mailroom.sleep_lock(p_channel text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT hashtextextended('mailroom.sleep ' || p_channel, 0)
$$;

-- The one by which a queue's workers agree on who answers the bell.
CREATE FUNCTION mailroom.bell_lock(p_channel text, p_queue text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT hashtextextended('mailroom.bell ' || p_channel || ' ' || p_queue, 0)
$$;

-- Tells the channel (the trigger's argument) how many tokens a statement inserted, if somebody sleeps:
-- then the lock is refused. Whoever gets it keeps it until the transaction is over and visible, and so
-- does whoever wants to sleep wait for it. A row that carries another transaction's txid, as a data-only
-- restore writes it, is given this one's: a txid from the past would hide it behind the cursor for ever.
CREATE OR REPLACE FUNCTION mailroom.ring() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    inserted_count bigint;
    foreign_count  bigint;
BEGIN
    SELECT count(*), count(*) FILTER (WHERE i.txid <> pg_current_xact_id())
    INTO inserted_count, foreign_count FROM inserted i;
    IF foreign_count > 0 THEN
        UPDATE public.tokens t SET txid = pg_current_xact_id()
        FROM inserted i WHERE t.id = i.id AND i.txid <> pg_current_xact_id();
    END IF;
    IF inserted_count > 0
       AND NOT pg_try_advisory_xact_lock_shared(hashtextextended('mailroom.sleep ' || TG_ARGV[0], 0)) THEN
        PERFORM pg_notify(TG_ARGV[0], inserted_count::text);
    END IF;
    RETURN NULL;
END $$;

REVOKE EXECUTE ON FUNCTION mailroom.sleep_lock(text), mailroom.bell_lock(text, text) FROM PUBLIC;
