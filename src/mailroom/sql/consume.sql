-- Consuming a token, for an application that has verified its signature.

-- It locks the account's row first. So of two siblings consumed at once only one succeeds, and a suspension
-- comes either before, and is seen, or after.
CREATE FUNCTION mailroom.consume(p_secret bytea, p_action text, p_code text DEFAULT NULL)
RETURNS TABLE (outcome text, account bigint, codes_left integer, token bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    owner   public.accounts;
    rule    mailroom.actions;
    refused public.tokens;
BEGIN
    SELECT a.* INTO owner FROM public.accounts a
    WHERE a.id = (SELECT t.account FROM public.tokens t
                  WHERE t.secret = p_secret AND t.action::text = p_action)
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'unknown', NULL::bigint, NULL::integer, NULL::bigint;
        RETURN;
    END IF;
    SELECT * INTO rule FROM mailroom.actions k WHERE k.action::text = p_action;

    UPDATE public.tokens t SET consumed_at = clock_timestamp()
    WHERE t.secret = p_secret AND t.action = rule.action
      AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp() AND t.wrong_codes < 5
      AND owner.status = rule.account_status
      AND (NOT rule.needs_code OR t.code = p_code)
    RETURNING t.id INTO token;
    IF FOUND THEN
        RETURN QUERY SELECT 'consumed', owner.id, NULL::integer, token;
        RETURN;
    END IF;

    SELECT * INTO refused FROM public.tokens t WHERE t.secret = p_secret;
    outcome := CASE
        WHEN refused.consumed_at IS NOT NULL THEN 'used'
        WHEN refused.wrong_codes >= 5 THEN 'exhausted'
        WHEN refused.expires_at <= clock_timestamp() THEN 'expired'
        WHEN owner.status = 'suspended' THEN 'suspended'
        WHEN owner.status <> rule.account_status THEN 'ineligible'
        ELSE 'wrong_code' END;
    IF outcome = 'wrong_code' THEN
        UPDATE public.tokens t SET wrong_codes = t.wrong_codes + 1 WHERE t.id = refused.id
        RETURNING 5 - t.wrong_codes INTO codes_left;
        IF codes_left = 0 THEN
            outcome := 'exhausted';
        END IF;
    END IF;
    account := owner.id;
    token := refused.id;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION mailroom.consume IS
    'Consumes a token whose signature was verified and returns the outcome: consumed, unknown, used (consumed '
    'before), exhausted (five wrong codes), expired (or ended by a consumed sibling or a change of the address), '
    'suspended, ineligible (the account''s status does not fit the action), wrong_code. A wrong code is counted: '
    'commit the transaction.';

-- A sibling that is locked is being consumed at this moment. It is skipped, because waiting for it could
-- deadlock.
--
-- row_security = on, since the application's triggers on accounts run with it. mailroom.consume has read the
-- account before, with row_security = off.
CREATE FUNCTION mailroom.after_consumption() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
BEGIN
    IF NEW.action = 'activation' THEN
        UPDATE public.accounts SET status = 'active'
        WHERE id = NEW.account AND status = 'provisioned';
    END IF;
    UPDATE public.tokens SET expires_at = clock_timestamp()
    WHERE id IN (SELECT s.id FROM public.tokens s
                 WHERE s.account = NEW.account AND s.action = NEW.action AND s.id <> NEW.id
                   AND s.consumed_at IS NULL AND s.expires_at > clock_timestamp()
                 FOR NO KEY UPDATE SKIP LOCKED);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION mailroom.after_consumption IS
    'Activates the account whose activation token was consumed, and expires the token''s unconsumed siblings.';

CREATE TRIGGER tokens_after_consumption AFTER UPDATE OF consumed_at ON public.tokens
    FOR EACH ROW WHEN (OLD.consumed_at IS NULL AND NEW.consumed_at IS NOT NULL)
    EXECUTE FUNCTION mailroom.after_consumption();
