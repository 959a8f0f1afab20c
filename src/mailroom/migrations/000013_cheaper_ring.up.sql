-- The doorbell costs each insert of tokens less: a producer that need not ring evaluates two expressions, where
-- there was a query, and a function with settings and rights of its own.

-- A row that carries another transaction's txid, as a data-only restore writes it, is given this one's: a
-- txid from the past would hide it behind the cursor for ever.
CREATE FUNCTION mailroom.stamp() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.txid := pg_catalog.pg_current_xact_id();
    RETURN NEW;
END $$;

CREATE TRIGGER tokens_stamp BEFORE INSERT ON public.tokens
    FOR EACH ROW WHEN (NEW.txid IS DISTINCT FROM pg_current_xact_id())
    EXECUTE FUNCTION mailroom.stamp();

-- Tells the channel (the trigger's argument) how many tokens a statement inserted, if somebody sleeps:
-- then the lock is refused. Whoever gets it keeps it until the transaction is over and visible, and so
-- does whoever wants to sleep wait for it.
CREATE OR REPLACE FUNCTION mailroom.ring() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER AS $$
DECLARE
    inserted_count pg_catalog.int8;
BEGIN
    -- The key is sleep_lock's.
    IF NOT pg_catalog.pg_try_advisory_xact_lock_shared(
               pg_catalog.hashtextextended(pg_catalog.concat('mailroom.sleep ', TG_ARGV[0]), 0)) THEN
        SELECT pg_catalog.count(*) INTO inserted_count FROM inserted;
        IF inserted_count OPERATOR(pg_catalog.>) 0 THEN
            PERFORM pg_catalog.pg_notify(TG_ARGV[0], inserted_count::pg_catalog.text);
        END IF;
    END IF;
    RETURN NULL;
END $$;

REVOKE EXECUTE ON FUNCTION mailroom.stamp() FROM PUBLIC;
