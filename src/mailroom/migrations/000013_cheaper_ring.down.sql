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

DROP TRIGGER tokens_stamp ON public.tokens;
DROP FUNCTION mailroom.stamp();
