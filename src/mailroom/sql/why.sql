-- One person's mails: what decides about them, and what became of them. Nothing here returns a secret or a code.

-- The header of a mail has <ID@REGION.amazonses.com>.
CREATE FUNCTION mailroom.written_about(p_who text, p_limit integer) RETURNS TABLE (token bigint, at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    mail CONSTANT text := regexp_replace(btrim(p_who, '<> '), '@[a-z0-9.-]*amazonses\.com$', '');
BEGIN
    RETURN QUERY
        SELECT x.token, max(x.at)
        FROM ((SELECT d.token, d.at FROM mailroom.deliveries d
               WHERE mailroom.normal_address(d.recipient) = mailroom.normal_address(p_who) AND d.recipient <> ''
               ORDER BY d.id DESC LIMIT 20 * p_limit)
              UNION ALL
              (SELECT d.token, d.at FROM mailroom.deliveries d
               WHERE d.subject = p_who AND d.subject <> '' ORDER BY d.id DESC LIMIT 20 * p_limit)
              UNION ALL
              (SELECT d.token, d.at FROM mailroom.deliveries d
               WHERE d.message_id = mail AND d.message_id <> '' LIMIT p_limit)
              UNION ALL
              (SELECT e.token, e.at FROM mailroom.events e
               WHERE e.message_id = mail AND e.message_id <> '' AND e.token IS NOT NULL LIMIT p_limit)) x
        GROUP BY x.token ORDER BY 2 DESC LIMIT p_limit;
END $$;
COMMENT ON FUNCTION mailroom.written_about IS
    'Returns the last p_limit tokens that the ledger or the events know by an address that a mail went to, a subject, or '
    'the provider''s id of a mail. They may have been deleted.';

CREATE FUNCTION mailroom.tokens_of(p_who text, p_limit integer)
RETURNS TABLE (token bigint, action text, email text, login text, status text, status_changed_at timestamptz,
               needed_status text, created_at timestamptz, expires_at timestamptz, consumed_at timestamptz,
               why_not_mailable text, lane text, send_at timestamptz, waits boolean, lease_worker text,
               lease_generation integer, lease_due_at timestamptz, lease_is_due boolean,
               subject text, user_table text, ended_at timestamptz, ended_as text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    wanted bigint[];
    named  bigint;
    owner  bigint;
BEGIN
    IF p_who ~ '^[0-9]{1,18}$' THEN
        named := p_who::bigint;
        IF EXISTS (SELECT FROM public.tokens t WHERE t.id = named)
           OR EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = named) THEN
            wanted := named || ARRAY(SELECT t.id FROM public.tokens t
                                     WHERE t.subject = p_who AND t.user_table IS NOT NULL AND t.id <> named
                                     ORDER BY t.id DESC LIMIT p_limit - 1);
        END IF;
    END IF;
    IF wanted IS NULL THEN
        SELECT a.id INTO owner FROM public.accounts a WHERE lower(a.email) = lower(p_who);
        IF owner IS NULL THEN
            SELECT a.id INTO owner FROM public.accounts a WHERE a.login = p_who;
        END IF;
        wanted := ARRAY(
            SELECT t.id
            FROM (SELECT x.id, x.created_at FROM public.tokens x WHERE x.account = owner
                  UNION SELECT x.id, x.created_at FROM public.tokens x WHERE lower(x.email) = lower(p_who)
                  UNION SELECT x.id, x.created_at FROM public.tokens x WHERE x.subject = p_who
                  UNION SELECT d.token, coalesce(x.created_at, d.at)
                  FROM mailroom.written_about(p_who, p_limit) d LEFT JOIN public.tokens x ON x.id = d.token) t
            GROUP BY t.id ORDER BY max(t.created_at) DESC, t.id DESC LIMIT p_limit);
        -- No index has logins, so this is last.
        IF cardinality(wanted) = 0 AND owner IS NULL THEN
            wanted := ARRAY(SELECT t.id FROM public.tokens t
                            WHERE (t.user_table, t.subject) IN (
                                SELECT x.user_table, x.subject FROM public.tokens x
                                WHERE x.login = p_who AND x.user_table IS NOT NULL)
                            ORDER BY t.created_at DESC, t.id DESC LIMIT p_limit);
        END IF;
        IF cardinality(wanted) = 0 AND owner IS NULL THEN
            RETURN;
        ELSIF cardinality(wanted) = 0 THEN
            wanted := ARRAY[NULL::bigint];
        END IF;
    END IF;
    RETURN QUERY
        SELECT w.id, t.action::text, coalesce(t.email, a.email), coalesce(t.login, a.login), a.status::text,
               a.status_changed_at, k.account_status::text, t.created_at, nullif(t.expires_at, 'infinity'), t.consumed_at,
               CASE WHEN w.id IS NOT NULL THEN mailroom.why_not_mailable(w.id) END,
               t.lane::text, t.send_at,
               coalesce(NOT pg_visible_in_snapshot(t.txid, c.low)
                        AND NOT (pg_visible_in_snapshot(t.txid, c.high)
                                 AND (t.txid, t.id) <= (c.last_txid, c.last_seq)), false),
               CASE WHEN l.worker = 'paused' THEN '' ELSE l.worker END, l.generation, l.due_at,
               l.due_at <= clock_timestamp(), t.subject, t.user_table::text, t.ended_at, t.ended_as
        FROM unnest(wanted) WITH ORDINALITY AS w (id, n)
        LEFT JOIN public.tokens t ON t.id = w.id
        LEFT JOIN public.accounts a ON a.id = CASE WHEN t.id IS NULL THEN owner ELSE t.account END
        LEFT JOIN mailroom.actions k ON k.action = t.action
        LEFT JOIN mailroom.cursors c ON c.lane = t.lane
        LEFT JOIN LATERAL (
            SELECT x.worker, x.generation, x.due_at FROM mailroom.leases x
            WHERE w.id = ANY (x.tokens) LIMIT 1) l ON true
        ORDER BY w.n;
END $$;
COMMENT ON FUNCTION mailroom.tokens_of IS
    'Returns the last p_limit tokens of a person, newest first: by an address, by the account''s login, by subject, or by '
    'the id of a mail; or one token by its id: with all that decides about their mail. waits means that no claim has'
    ' reached it. An account without tokens is a row whose token is NULL. A deleted token that is still in the '
    'ledger or in a lease has no action. A token that never expires has no expires_at.';

CREATE FUNCTION mailroom.last_tokens(p_user_table regclass, p_user_id text, p_limit integer) RETURNS SETOF bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT t.id FROM public.tokens t WHERE t.user_table = p_user_table AND t.subject = p_user_id
    ORDER BY t.created_at DESC, t.id DESC LIMIT p_limit
$$;
COMMENT ON FUNCTION mailroom.last_tokens IS
    'Returns the ids of the last tokens of a user of an adopted table, newest first.';

CREATE FUNCTION mailroom.deliveries_of(p_tokens bigint[])
RETURNS TABLE (token bigint, attempt integer, outcome text, result text, provider text, message_id text,
               detail text, worker text, at timestamptz, recipient text, template text, language text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT d.token, d.attempt, d.outcome, d.result, d.provider, d.message_id, d.detail, d.worker, d.at,
           d.recipient, d.template, d.language
    FROM mailroom.deliveries d
    LEFT JOIN public.tokens t ON t.id = d.token
    WHERE d.token = ANY (p_tokens) AND mailroom.is_of(d.fingerprint, t.secret)
    ORDER BY d.id
$$;
COMMENT ON FUNCTION mailroom.deliveries_of IS
    'Returns the ledger''s rows of these tokens, in the order of insertion.';
