-- Dead letters: tokens that were rejected for good.
--
-- A token is a dead letter if the ledger's last row for it is rejected, none is sent, and no lease holds it. A mail that
-- SES took and could not render was not sent. What
-- a person decides about one is a row of the ledger too, with the result 'by hand': retried (it is in a lease
-- again), or skipped (another token took its place, or it was dropped).

CREATE FUNCTION mailroom.is_dead(p_token bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT coalesce((SELECT d.outcome = 'rejected' FROM mailroom.deliveries d
                     WHERE d.token = p_token AND mailroom.is_of(d.fingerprint, t.secret)
                     ORDER BY d.id DESC LIMIT 1), false)
       AND NOT EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = p_token AND d.outcome = 'sent'
                       AND mailroom.is_of(d.fingerprint, t.secret) AND NOT mailroom.unrendered(d.token, d.id))
       AND NOT EXISTS (SELECT FROM mailroom.leases l WHERE p_token = ANY (l.tokens))
    FROM (SELECT p_token AS id) p LEFT JOIN public.tokens t ON t.id = p.id
$$;
COMMENT ON FUNCTION mailroom.is_dead IS
    'Returns whether a token is a dead letter: last rejected, never sent, in no lease.';

-- The settings make it walk deliveries_rejected_idx and probe the rest, whatever the planner believes about the
-- tables.
CREATE FUNCTION mailroom.dead_letters(p_action text, p_since interval, p_before_at timestamptz, p_before_id bigint,
                                      p_limit integer)
RETURNS TABLE (id bigint, token bigint, action text, email text, login text, subject text, at timestamptz,
               attempts bigint, detail text, why_not_mailable text, expires_in double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_bitmapscan = off SET enable_sort = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off AS $$
    SELECT d.id, d.token, t.action::text, coalesce(nullif(d.recipient, ''), t.email), t.login,
           coalesce(t.subject, nullif(d.subject, '')), d.at,
           (SELECT count(*) FROM mailroom.deliveries e
            WHERE e.token = d.token AND coalesce(e.fingerprint = d.fingerprint, true)
              AND e.result NOT IN ('', 'by hand', 'known', 'unrendered')),
           coalesce(nullif(d.detail, ''), d.result), mailroom.why_not_mailable(d.token),
           extract(epoch FROM nullif(t.expires_at, 'infinity') - clock_timestamp())::double precision
    FROM mailroom.deliveries d
    LEFT JOIN public.tokens t ON t.id = d.token
    WHERE d.outcome = 'rejected' AND mailroom.is_of(d.fingerprint, t.secret)
      AND (d.at, d.id) < (p_before_at, p_before_id)
      AND d.at > coalesce(statement_timestamp() - p_since, '-infinity')
      AND (p_action IS NULL OR t.action::text = p_action)
      AND NOT EXISTS (SELECT FROM mailroom.deliveries e
                      WHERE e.token = d.token AND coalesce(e.fingerprint = d.fingerprint, true)
                        AND (e.id > d.id OR e.outcome = 'sent' AND d.result <> 'unrendered'))
      AND d.token NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
    ORDER BY d.at DESC, d.id DESC
    LIMIT p_limit
$$;
COMMENT ON FUNCTION mailroom.dead_letters IS
    'Returns dead letters, newest first, that were rejected before a row of the ledger (its at and id); of one '
    'action, or of all if it is NULL; of the time p_since, or of all if it is NULL. attempts counts the '
    'transport''s answers. expires_in is in seconds, NULL for never. A deleted token has no action.';

CREATE FUNCTION mailroom.dead_count(p_action text, p_since interval, p_rows integer)
RETURNS TABLE (dead bigint, more boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_bitmapscan = off SET enable_sort = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off AS $$
    SELECT count(*) FILTER (
               WHERE r.n <= p_rows
                 AND (p_action IS NULL
                      OR EXISTS (SELECT FROM public.tokens t WHERE t.id = r.token AND t.action::text = p_action))
                 AND NOT EXISTS (SELECT FROM public.tokens t
                                 WHERE t.id = r.token AND NOT mailroom.is_of(r.fingerprint, t.secret))
                 AND NOT EXISTS (SELECT FROM mailroom.deliveries e
                                 WHERE e.token = r.token AND coalesce(e.fingerprint = r.fingerprint, true)
                                   AND (e.id > r.id OR e.outcome = 'sent' AND r.result <> 'unrendered'))
                 AND r.token NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)),
           count(*) > p_rows
    FROM (SELECT d.id, d.token, d.fingerprint, d.result, row_number() OVER () AS n
          FROM (SELECT x.id, x.token, x.fingerprint, x.result FROM mailroom.deliveries x
                WHERE x.outcome = 'rejected' AND x.at > coalesce(statement_timestamp() - p_since, '-infinity')
                ORDER BY x.at DESC, x.id DESC LIMIT p_rows + 1) d) r
$$;
COMMENT ON FUNCTION mailroom.dead_count IS
    'Returns how many dead letters there are among the newest p_rows rejections. more means that there are older '
    'rejections, which it did not check.';

-- Each person sees what the one before did; a snapshot from before the wait would not.
CREATE FUNCTION mailroom.lock_dead_letters() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'mailroom: dead letters can be retried and dropped in READ COMMITTED transactions only'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('mailroom.dead_letters', 0));
END $$;
COMMENT ON FUNCTION mailroom.lock_dead_letters IS
    'Lets one person at a time decide about dead letters, in READ COMMITTED transactions only.';

CREATE FUNCTION mailroom.rejected_as(p_token bigint) RETURNS bytea
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT d.fingerprint FROM mailroom.deliveries d
    LEFT JOIN public.tokens t ON t.id = d.token
    WHERE d.token = p_token AND mailroom.is_of(d.fingerprint, t.secret)
    ORDER BY d.id DESC LIMIT 1
$$;
COMMENT ON FUNCTION mailroom.rejected_as IS
    'Returns the fingerprint in the last row of a dead letter, whose token may have been deleted.';

CREATE FUNCTION mailroom.retry_dead(p_channel text, p_tokens bigint[], p_renew boolean, p_reason text, p_worker text)
RETURNS TABLE (token bigint, outcome text, other bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    reason  CONSTANT text := coalesce(': ' || nullif(p_reason, ''), '');
    expired public.tokens;
    owner   public.accounts;
    retried bigint[] := '{}';
BEGIN
    PERFORM mailroom.lock_dead_letters();
    FOR token IN SELECT DISTINCT u FROM unnest(p_tokens) u ORDER BY u LOOP
        other := NULL;
        outcome := CASE WHEN mailroom.is_dead(token) THEN coalesce(mailroom.why_not_mailable(token), 'retried')
                        ELSE 'not dead' END;
        IF outcome = 'retried' THEN
            retried := retried || token;
            INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, result, detail, worker)
            VALUES (token, mailroom.rejected_as(token), 0, 'retried', 'by hand', 'by hand' || reason, p_worker);
        ELSIF outcome = 'expired' AND p_renew THEN
            SELECT * INTO expired FROM public.tokens t WHERE t.id = token;
            -- A locked account is skipped: waiting for many accounts, one after the other, could deadlock.
            SELECT * INTO owner FROM public.accounts a WHERE a.id = expired.account FOR NO KEY UPDATE SKIP LOCKED;
            IF NOT FOUND AND expired.account IS NOT NULL THEN
                outcome := 'busy';
            ELSIF owner.status = 'suspended' THEN
                outcome := 'suspended';
            ELSIF lower(owner.email) <> lower(expired.email) THEN
                outcome := 'address changed';
            ELSIF NOT EXISTS (SELECT FROM mailroom.actions k
                              WHERE k.action = expired.action
                                AND mailroom.fits(expired.account, owner.status, k.account_status)) THEN
                outcome := 'ineligible';
            ELSIF EXISTS (SELECT FROM mailroom.siblings(expired.action::text, expired.account, expired.email,
                                                        expired.subject, expired.user_table) s
                          WHERE s.consumed_at >= expired.created_at) THEN
                outcome := 'sibling consumed';
            ELSIF ARRAY(SELECT f FROM mailroom.actions k, unnest(k.fields) f WHERE k.action = expired.action ORDER BY f)
                  <> ARRAY(SELECT f FROM jsonb_object_keys(coalesce(expired.data, '{}')) f ORDER BY f) THEN
                outcome := 'other fields';
            ELSE
                SELECT s.id INTO other FROM mailroom.siblings(expired.action::text, expired.account, expired.email,
                                                              expired.subject, expired.user_table) s
                WHERE s.consumed_at IS NULL AND s.expires_at > clock_timestamp()
                ORDER BY s.id DESC LIMIT 1;
                outcome := 'valid';
                IF NOT FOUND THEN
                    INSERT INTO public.tokens (action, account, subject, user_table, email, login, locale, data)
                    VALUES (expired.action, expired.account, expired.subject, expired.user_table, expired.email,
                            expired.login, expired.locale, expired.data)
                    RETURNING id INTO other;
                    INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, result, detail, worker)
                    VALUES (token, mailroom.rejected_as(token), 0, 'skipped', 'by hand',
                            'renewed as token ' || other || reason, p_worker);
                    outcome := 'renewed';
                END IF;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF cardinality(retried) > 0 THEN
        INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)
        SELECT o.lane, array_agg(o.id ORDER BY o.n), '', 0, clock_timestamp()
        FROM (SELECT t.lane, u.id, u.n, row_number() OVER (PARTITION BY t.lane ORDER BY u.n) AS in_lane
              FROM unnest(retried) WITH ORDINALITY AS u (id, n) JOIN public.tokens t ON t.id = u.id) o
        GROUP BY o.lane, (o.in_lane - 1) / 50;
        PERFORM pg_notify(p_channel, cardinality(retried)::text);
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.retry_dead IS
    'Puts dead letters into leases that are due at once, and notifies the channel. With p_renew the account of an '
    'expired one gets a new token. The outcome of each is retried, renewed (other is the new token), valid (the '
    'account has a valid token: other), busy (the account is locked), not dead, or why it may not be mailed.';

CREATE FUNCTION mailroom.drop_dead(p_tokens bigint[], p_reason text, p_worker text)
RETURNS TABLE (token bigint, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM mailroom.lock_dead_letters();
    FOR token IN SELECT DISTINCT u FROM unnest(p_tokens) u ORDER BY u LOOP
        outcome := 'not dead';
        IF mailroom.is_dead(token) THEN
            outcome := 'dropped';
            INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, result, detail, worker)
            VALUES (token, mailroom.rejected_as(token), 0, 'skipped', 'by hand',
                    'dropped by hand' || coalesce(': ' || nullif(p_reason, ''), ''), p_worker);
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION mailroom.drop_dead IS
    'Removes dead letters from the list without mailing them; the ledger keeps their history. The outcome of each '
    'is dropped or not dead.';
