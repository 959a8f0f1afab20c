-- Consuming a token, for the application that has checked its signature.
--
-- The outcome is one of: consumed, unknown, used (consumed before), exhausted (five wrong codes),
-- expired (or ended by a consumed sibling), suspended, ineligible (the account's status does not
-- fit the action), wrong_code. A wrong code is counted: let the transaction commit.
--
-- The account's row is locked first, so that of two siblings consumed at once one wins, and a
-- suspension either comes first and is seen or comes after.
CREATE FUNCTION mailroom.consume(p_secret bytea, p_action text, p_code text DEFAULT NULL)
RETURNS TABLE (outcome text, account bigint, codes_left integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
        RETURN QUERY SELECT 'unknown', NULL::bigint, NULL::integer;
        RETURN;
    END IF;
    SELECT * INTO rule FROM mailroom.actions k WHERE k.action::text = p_action;

    UPDATE public.tokens t SET consumed_at = clock_timestamp()
    WHERE t.secret = p_secret AND t.action = rule.action
      AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp() AND t.wrong_codes < 5
      AND owner.status = rule.account_status
      AND (NOT rule.needs_code OR t.code = p_code);
    IF FOUND THEN
        RETURN QUERY SELECT 'consumed', owner.id, NULL::integer;
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
    RETURN NEXT;
END $$;

REVOKE EXECUTE ON FUNCTION mailroom.consume(bytea, text, text) FROM PUBLIC;
