-- Erasing a person: what the ledger, the events and the other tables of Mailroom say about an address.

CREATE FUNCTION mailroom.without_addresses(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN regexp_replace(p_text, '[^\s<>"''(),:;]+@[^\s<>"''(),:;]+', '<forgotten>', 'g');
COMMENT ON FUNCTION mailroom.without_addresses IS 'Returns a text with <forgotten> in place of each address.';

-- Words of a server may spell an address in any way, and others may contain it.
CREATE FUNCTION mailroom.names_address(p_text text, p_form text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    words text := p_text;
    label text;
BEGIN
    IF p_text IS NULL OR strpos(p_text, '@') = 0 THEN
        RETURN false;
    END IF;
    words := CASE WHEN getdatabaseencoding() = 'UTF8' THEN mailroom.plain_letters(p_text) ELSE lower(p_text) END;
    IF strpos(words, 'xn--') > 0 THEN
        FOR label IN SELECT DISTINCT m[1] FROM regexp_matches(words, 'xn--[a-z0-9-]+', 'g') m LOOP
            words := replace(words, label, mailroom.unicode_label(label));
        END LOOP;
    END IF;
    RETURN words ~ concat('(?<![[:alnum:]._%+-])', regexp_replace(p_form, '([^[:alnum:]])', '\\\1', 'g'),
                          '(?![[:alnum:]-]|\.[[:alnum:]])');
END $$;
COMMENT ON FUNCTION mailroom.names_address IS
    'Returns whether a text contains an address in any spelling. p_form is the address as mailroom.normal_address returns it.';

CREATE FUNCTION mailroom.forget(p_address text) RETURNS TABLE (place text, erased bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    form  CONSTANT text := mailroom.normal_address(p_address);
    owner bigint;
    gone  bigint[];
    named bigint[];
BEGIN
    IF coalesce(p_address, '') !~ '^[^@]+@[^@]+$' THEN
        RAISE EXCEPTION 'mailroom: an address to forget has one @' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT a.id INTO owner FROM public.accounts a WHERE mailroom.normal_address(a.email) = form LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'mailroom: the account % still has this address', owner
            USING ERRCODE = 'object_in_use', HINT = 'Delete the account, or change its address, first.';
    END IF;
    IF EXISTS (SELECT FROM public.tokens t
               WHERE t.user_table IS NOT NULL AND t.consumed_at IS NULL AND t.ended_at IS NULL
                 AND t.expires_at > clock_timestamp() AND mailroom.normal_address(t.email) = form) THEN
        RAISE EXCEPTION 'mailroom: a user of an adopted table still has this address, and open tokens'
            USING ERRCODE = 'object_in_use', HINT = 'Delete the user, or change the address, first.';
    END IF;

    place := 'tokens';
    WITH deleted AS (DELETE FROM public.tokens t WHERE mailroom.normal_address(t.email) = form RETURNING t.id)
    SELECT coalesce(array_agg(d.id), '{}'), count(*) INTO gone, erased FROM deleted d;
    RETURN NEXT;

    named := gone || ARRAY(SELECT DISTINCT d.token FROM mailroom.deliveries d
                           WHERE mailroom.normal_address(d.recipient) = form AND d.recipient <> '');
    place := 'deliveries';
    UPDATE mailroom.deliveries d
    SET recipient = '', subject = '', detail = mailroom.without_addresses(d.detail)
    WHERE d.token = ANY (named) AND (d.recipient = '' OR mailroom.normal_address(d.recipient) = form)
       OR mailroom.names_address(d.detail, form)
       OR mailroom.normal_address(d.subject) = form;
    GET DIAGNOSTICS erased = ROW_COUNT;
    RETURN NEXT;

    place := 'events';
    UPDATE mailroom.events e SET recipient = '', diagnostic = mailroom.without_addresses(e.diagnostic)
    WHERE mailroom.normal_address(e.recipient) = form
       OR mailroom.names_address(e.diagnostic, form);
    GET DIAGNOSTICS erased = ROW_COUNT;
    RETURN NEXT;

    place := 'unreadable_events';
    DELETE FROM mailroom.unreadable_events u
    WHERE mailroom.names_address(u.text, form)
       OR mailroom.names_address(u.reason, form);
    GET DIAGNOSTICS erased = ROW_COUNT;
    RETURN NEXT;

    place := 'suppressions';
    UPDATE mailroom.suppressions s SET address = NULL, reason = mailroom.without_addresses(s.reason)
    WHERE s.hash = mailroom.address_hash(p_address) AND s.address IS NOT NULL
       OR mailroom.names_address(s.reason, form);
    GET DIAGNOSTICS erased = ROW_COUNT;
    RETURN NEXT;

    place := 'granted';
    DELETE FROM mailroom.granted g WHERE g.recipient = form;
    GET DIAGNOSTICS erased = ROW_COUNT;
    RETURN NEXT;

    place := 'reasons';
    UPDATE public.jobs j SET pause_reason = mailroom.without_addresses(j.pause_reason)
    WHERE mailroom.names_address(j.pause_reason, form);
    GET DIAGNOSTICS erased = ROW_COUNT;
    WITH changed AS (
        UPDATE mailroom.actions k SET pause_reason = mailroom.without_addresses(k.pause_reason)
        WHERE mailroom.names_address(k.pause_reason, form)
        RETURNING 1)
    SELECT erased + count(*) INTO erased FROM changed;
    WITH changed AS (
        UPDATE mailroom.workers w SET trouble = mailroom.without_addresses(w.trouble),
                                      events_trouble = mailroom.without_addresses(w.events_trouble)
        WHERE mailroom.names_address(w.trouble, form) OR mailroom.names_address(w.events_trouble, form)
        RETURNING 1)
    SELECT erased + count(*) INTO erased FROM changed;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION mailroom.forget IS
    'Erases an address, in all its spellings, from Mailroom''s tables, and returns how many rows of each changed: its '
    'tokens are deleted, the ledger and the events keep what happened without saying to whom, and a suppression keeps '
    'its hash alone. Fails while an account has the address, or a '
    'user of an adopted table has open tokens for it.';
