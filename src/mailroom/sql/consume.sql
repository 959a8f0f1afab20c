-- Consuming a token, for an application that has verified its signature, or a code alone.

CREATE FUNCTION mailroom.siblings(p_action text, p_account bigint, p_email text, p_subject text,
                                  p_user_table regclass)
RETURNS SETOF tokens
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF p_account IS NOT NULL THEN
        RETURN QUERY SELECT t.* FROM public.tokens t WHERE t.account = p_account AND t.action::text = p_action;
    ELSIF p_user_table IS NOT NULL THEN
        RETURN QUERY SELECT t.* FROM public.tokens t
                     WHERE t.subject = p_subject AND t.user_table = p_user_table AND t.action::text = p_action;
    ELSE
        RETURN QUERY SELECT t.* FROM public.tokens t
                     WHERE lower(t.email) = lower(p_email) AND t.account IS NULL AND t.user_table IS NULL
                       AND t.subject IS NOT DISTINCT FROM p_subject AND t.action::text = p_action;
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.siblings IS
    'Returns the tokens of one action and one recipient: of an account, of a user of an adopted table, or, without '
    'either, of an address and a subject.';

-- Of two siblings consumed at once only one succeeds, and a suspension comes either before, and is seen, or after.
CREATE FUNCTION mailroom.lock_recipient(p_account bigint, p_action text, p_email text, p_subject text,
                                        p_user_table regclass) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF p_account IS NOT NULL THEN
        PERFORM FROM public.accounts a WHERE a.id = p_account FOR NO KEY UPDATE;
    ELSIF p_user_table IS NOT NULL THEN
        PERFORM mailroom.lock_user(p_user_table, p_subject);
    ELSE
        PERFORM pg_advisory_xact_lock(hashtextextended('mailroom.consume ' || p_action || ' ' || lower(p_email), 0));
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.lock_recipient IS
    'Locks the recipient of a token until the transaction ends: the account, the user of an adopted table, or an '
    'address without either.';

CREATE FUNCTION mailroom.consume_locked(p_token bigint, p_code text)
RETURNS TABLE (outcome text, account bigint, codes_left integer, token bigint, subject text, email text, data jsonb,
               user_table text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    status public.account_status;
    rule   mailroom.actions;
    named  public.tokens;
    wrong  boolean;
BEGIN
    SELECT * INTO named FROM public.tokens t WHERE t.id = p_token;
    SELECT * INTO rule FROM mailroom.actions k WHERE k.action = named.action;
    -- A wrong code is counted without a lock on the recipient, whatever the status.
    wrong := rule.needs_code AND named.code IS DISTINCT FROM p_code;
    IF named.user_table IS NULL THEN
        SELECT a.status INTO status FROM public.accounts a WHERE a.id = named.account;
    ELSIF NOT wrong THEN
        status := (mailroom.lock_user(named.user_table, named.subject)).status;
    END IF;
    outcome := CASE
        WHEN named.id IS NULL OR rule.action IS NULL OR NOT (rule.has_link OR rule.needs_code)
             OR named.user_table IS NOT NULL AND NOT wrong AND status IS NULL THEN 'unknown'
        WHEN named.consumed_at IS NOT NULL THEN 'used'
        WHEN named.wrong_codes >= 5 THEN 'exhausted'
        WHEN named.expires_at <= clock_timestamp() THEN 'expired'
        WHEN EXISTS (SELECT FROM mailroom.siblings(named.action::text, named.account, named.email, named.subject,
                                                 named.user_table) s
                     WHERE s.id <> named.id AND s.consumed_at >= named.created_at) THEN 'expired'
        WHEN wrong THEN 'wrong_code'
        WHEN status = 'suspended' THEN 'suspended'
        WHEN status <> rule.account_status THEN 'ineligible'
        ELSE 'consumed' END;
    IF outcome = 'unknown' THEN
        RETURN NEXT;
        RETURN;
    END IF;
    account := named.account;
    token := named.id;
    IF outcome = 'consumed' THEN
        -- The row may be locked by a transaction that ends it.
        UPDATE public.tokens t SET consumed_at = clock_timestamp()
        WHERE t.id = named.id AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp() AND t.wrong_codes < 5;
        IF FOUND THEN
            subject := named.subject;
            user_table := named.user_table::text;
            email := named.email;
            data := named.data;
        ELSE
            outcome := 'expired';
        END IF;
    ELSIF outcome = 'wrong_code' THEN
        UPDATE public.tokens t SET wrong_codes = t.wrong_codes + 1 WHERE t.id = named.id AND t.wrong_codes < 5
        RETURNING 5 - t.wrong_codes INTO codes_left;
        IF coalesce(codes_left, 0) = 0 THEN
            codes_left := 0;
            outcome := 'exhausted';
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION mailroom.consume_locked IS
    'Consumes a token whose recipient the transaction has locked, or counts a wrong code.';

CREATE FUNCTION mailroom.consume(p_secret bytea, p_action text, p_code text DEFAULT NULL,
                                 p_count_only boolean DEFAULT false)
RETURNS TABLE (outcome text, account bigint, codes_left integer, token bigint, subject text, email text, data jsonb,
               user_table text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    named public.tokens;
BEGIN
    SELECT * INTO named FROM public.tokens t WHERE t.secret = p_secret AND t.action::text = p_action;
    IF FOUND AND NOT p_count_only THEN
        PERFORM mailroom.lock_recipient(named.account, p_action, named.email, named.subject, named.user_table);
    END IF;
    RETURN QUERY
        SELECT c.* FROM mailroom.consume_locked(
            CASE WHEN NOT p_count_only OR EXISTS (SELECT FROM mailroom.actions k
                                                  WHERE k.action = named.action AND k.needs_code)
                 THEN named.id END,
            CASE WHEN NOT p_count_only THEN p_code END) c;
END $$;
COMMENT ON FUNCTION mailroom.consume IS
    'Consumes a token whose signature was verified and returns the outcome: consumed, unknown, used (consumed '
    'before), exhausted (five wrong codes), expired (or ended by a consumed sibling or a change of the address), '
    'suspended, ineligible (the account''s status does not fit the action), wrong_code. A wrong code is counted: '
    'commit the transaction. subject, user_table, email and data are the token''s, if it was consumed; subject is a '
    'user''s key only in user_table. The token of a notice is unknown. With p_count_only it counts a wrong code, '
    'without a lock on the recipient, and consumes nothing.';

-- Wrong codes for all open tokens of a recipient count together, so that a new request grants no further tries.
CREATE FUNCTION mailroom.consume_code(p_action text, p_code text, p_account bigint DEFAULT NULL,
                                      p_email text DEFAULT NULL, p_subject text DEFAULT NULL,
                                      p_user_id text DEFAULT NULL, p_user_table regclass DEFAULT NULL,
                                      p_count_only boolean DEFAULT false)
RETURNS TABLE (outcome text, account bigint, codes_left integer, token bigint, subject text, email text, data jsonb,
               user_table text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    person  text := p_subject;
    adopted CONSTANT regclass := CASE WHEN p_user_id IS NOT NULL THEN mailroom.adopted_table(p_user_table) END;
    newest  bigint;
    others  bigint;
    may_try boolean;
BEGIN
    IF num_nonnulls(p_account, p_email, p_user_id) <> 1 THEN
        RAISE EXCEPTION 'mailroom: a code is consumed for an account, for a user, or for an address and its subject'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_count_only THEN
        person := coalesce(p_user_id, p_subject);
    ELSIF adopted IS NOT NULL THEN
        -- Another spelling of the key would be counted as nobody's.
        SELECT u.id INTO person FROM mailroom.lock_user(adopted, p_user_id) u WHERE u.id = p_user_id;
    ELSE
        PERFORM mailroom.lock_recipient(p_account, p_action, p_email, person, NULL);
    END IF;
    SELECT max(s.id) INTO newest
    FROM mailroom.siblings(p_action, p_account, p_email, person, adopted) s
    JOIN mailroom.actions k ON k.action = s.action AND k.needs_code AND NOT k.has_link
    WHERE coalesce(s.send_at <= clock_timestamp(), true)
      AND NOT EXISTS (SELECT FROM mailroom.deliveries d
                      WHERE d.token = s.id AND d.outcome IN ('skipped', 'suppressed', 'rejected', 'expired')
                        AND mailroom.is_of(d.fingerprint, s.secret));
    SELECT coalesce(sum(s.wrong_codes) FILTER (WHERE s.id <> newest), 0), coalesce(sum(s.wrong_codes), 0) < 5
    INTO others, may_try
    FROM mailroom.siblings(p_action, p_account, p_email, person, adopted) s
    WHERE s.consumed_at IS NULL AND s.expires_at > clock_timestamp();
    IF p_count_only AND may_try AND EXISTS (SELECT FROM public.tokens t WHERE t.id = newest AND t.code = p_code)
    THEN
        outcome := 'right_code';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT * INTO outcome, account, codes_left, token, subject, email, data, user_table
    FROM mailroom.consume_locked(newest, CASE WHEN may_try THEN p_code END);
    IF outcome = 'wrong_code' THEN
        codes_left := greatest(codes_left - others, 0);
        IF codes_left = 0 THEN
            outcome := 'exhausted';
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION mailroom.consume_code IS
    'Consumes the newest token that was not held back, of an action whose mails have a code and no link: for an '
    'account, for a user of an adopted table, or for an address and its subject. Returns what mailroom.consume does. '
    'With p_count_only it counts a wrong code and consumes nothing; the outcome of a right code is right_code.';

-- A sibling that is locked is being consumed at this moment. It is skipped, because waiting for it could
-- deadlock.
--
-- row_security = on, since the application's triggers on accounts run with it. mailroom.consume has read the
-- account before, with row_security = off.
CREATE FUNCTION mailroom.after_consumption() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    now CONSTANT timestamptz := clock_timestamp();
BEGIN
    IF EXISTS (SELECT FROM mailroom.actions k WHERE k.action = NEW.action AND k.activates) THEN
        UPDATE public.accounts SET status = 'active'
        WHERE id = NEW.account AND status = 'provisioned';
        IF NEW.user_table IS NOT NULL THEN
            PERFORM mailroom.activate_user(NEW.user_table, NEW.subject);
        END IF;
    END IF;
    UPDATE public.tokens SET expires_at = now, ended_at = now, ended_as = 'sibling consumed'
    WHERE id IN (SELECT s.id FROM public.tokens s
                 WHERE s.id IN (SELECT x.id FROM mailroom.siblings(NEW.action::text, NEW.account, NEW.email,
                                                                   NEW.subject, NEW.user_table) x)
                   AND s.id <> NEW.id AND s.consumed_at IS NULL AND s.expires_at > now
                 FOR NO KEY UPDATE SKIP LOCKED);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION mailroom.after_consumption IS
    'Activates the account or user whose token of the activating action was consumed, and expires the token''s '
    'unconsumed siblings.';

CREATE TRIGGER tokens_after_consumption AFTER UPDATE OF consumed_at ON tokens
    FOR EACH ROW WHEN (OLD.consumed_at IS NULL AND NEW.consumed_at IS NOT NULL)
    EXECUTE FUNCTION mailroom.after_consumption();
