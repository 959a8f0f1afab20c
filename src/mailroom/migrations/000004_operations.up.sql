-- Made from src/mailroom/sql as it was then. A released migration never changes.

SELECT pg_catalog.set_config('search_path', pg_catalog.format('%s, pg_temp', mailroom.user_schema()), true),
       pg_catalog.set_config('check_function_bodies', 'off', true);

-- The state of the queue, and pausing it. Nothing here returns a secret or a code.

CREATE FUNCTION mailroom.sendable(p_token tokens, p_rule mailroom.actions) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (p_token).consumed_at IS NULL
       AND ((p_token).expires_at > clock_timestamp()
            OR (p_rule).renews AND (p_token).ended_at IS NULL
               AND (p_token).expires_at >= coalesce((p_token).send_at, (p_token).created_at) + (p_rule).lifetime);
COMMENT ON FUNCTION mailroom.sendable IS
    'Returns whether a token that waits is open, or had its whole life and gets a new one.';

CREATE FUNCTION mailroom.waiting()
RETURNS TABLE (urgent bigint, normal bigint, bulk bigint, scheduled bigint, oldest timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT count(*) FILTER (WHERE w.is_due AND w.lane = 'urgent'),
           count(*) FILTER (WHERE w.is_due AND w.lane = 'normal'),
           count(*) FILTER (WHERE w.is_due AND w.lane = 'bulk'), count(*) FILTER (WHERE NOT w.is_due),
           min(w.since) FILTER (WHERE w.is_due)
    FROM (SELECT t.lane, coalesce(t.send_at, t.created_at) AS since,
                 coalesce(t.send_at <= clock_timestamp(), true) AS is_due
          FROM mailroom.cursors c
          JOIN public.tokens t ON t.lane = c.lane AND t.txid >= pg_snapshot_xmin(c.low)
          JOIN mailroom.actions k ON k.action = t.action
          LEFT JOIN public.accounts a ON a.id = t.account
          WHERE mailroom.fits(t.account, a.status, k.account_status) AND mailroom.sendable(t, k)
            AND NOT pg_visible_in_snapshot(t.txid, c.low)
            AND NOT (pg_visible_in_snapshot(t.txid, c.high)
                     AND (t.txid, t.id) <= (c.last_txid, c.last_seq))) w
$$;
COMMENT ON FUNCTION mailroom.waiting IS
    'Returns how many tokens of each lane wait for a claim, how many of those are scheduled for later, and since when '
    'the oldest waits.';

CREATE FUNCTION mailroom.backlog()
RETURNS TABLE (waiting bigint, in_flight bigint, oldest_age double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH leased AS (
        SELECT unnest(l.tokens) AS id FROM mailroom.leases l
        WHERE l.worker <> 'scheduled' OR l.due_at <= clock_timestamp()
    ), flying AS (
        SELECT min(coalesce(t.send_at, t.created_at)) AS oldest FROM leased l JOIN public.tokens t ON t.id = l.id
    )
    SELECT w.urgent + w.normal + w.bulk, (SELECT count(*) FROM leased),
           extract(epoch FROM clock_timestamp() - least(w.oldest, f.oldest))::double precision
    FROM mailroom.waiting() w, flying f
$$;
COMMENT ON FUNCTION mailroom.backlog IS
    'Returns how many tokens wait for a claim, how many are in leases, and the age in seconds of the oldest of '
    'both, without those that are scheduled for later. It counts all waiting tokens: mailroom.pulse costs less.';

CREATE FUNCTION mailroom.overview()
RETURNS TABLE (waiting bigint, urgent bigint, normal bigint, bulk bigint, scheduled bigint,
               in_flight bigint, retrying bigint, oldest_age double precision,
               sent_minute bigint, rejected_minute bigint, unknown_minute bigint,
               sent_hour bigint, rejected_hour bigint, unknown_hour bigint,
               paused_at timestamptz, pause_reason text, rate double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT b.waiting, w.urgent, w.normal, w.bulk, w.scheduled + r.scheduled, b.in_flight - r.retrying, r.retrying,
           b.oldest_age, d.sent_minute, d.rejected_minute, d.unknown_minute, d.sent_hour, d.rejected_hour,
           d.unknown_hour, j.paused_at, j.pause_reason,
           (SELECT s.rate FROM mailroom.rates s ORDER BY s.changed_at DESC LIMIT 1)
    FROM public.jobs j
    CROSS JOIN mailroom.backlog() b
    CROSS JOIN mailroom.waiting() w
    CROSS JOIN (
        SELECT coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker IN ('', 'paused')
                   OR l.worker = 'scheduled' AND l.due_at <= clock_timestamp()), 0)::bigint AS retrying,
               coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker = 'scheduled'
                   AND l.due_at > clock_timestamp()), 0)::bigint AS scheduled
        FROM mailroom.leases l) r
    CROSS JOIN (
        SELECT count(*) FILTER (WHERE e.outcome = 'sent' AND e.recent) AS sent_minute,
               count(*) FILTER (WHERE e.outcome = 'rejected' AND e.recent) AS rejected_minute,
               count(*) FILTER (WHERE e.outcome = 'unknown' AND e.recent) AS unknown_minute,
               count(*) FILTER (WHERE e.outcome = 'sent') AS sent_hour,
               count(*) FILTER (WHERE e.outcome = 'rejected') AS rejected_hour,
               count(*) FILTER (WHERE e.outcome = 'unknown') AS unknown_hour
        FROM (SELECT x.outcome, x.at > statement_timestamp() - interval '1 minute' AS recent
              FROM mailroom.deliveries x WHERE x.at > statement_timestamp() - interval '1 hour') e) d
$$;
COMMENT ON FUNCTION mailroom.overview IS
    'Returns the state of the queue in one row: what waits, in all and of each lane, and what is scheduled for later. '
    'in_flight counts the tokens that workers hold, retrying those in leases that are not held. The other '
    'counts are the ledger''s of the last minute and hour.';

-- Health checks and metrics call it often, so it must cost little however much waits.
CREATE FUNCTION mailroom.pulse(p_most integer)
RETURNS TABLE (waiting bigint, in_flight bigint, retrying bigint, oldest_due double precision,
               is_paused boolean, rate double precision, oldest_unsettled double precision,
               urgent bigint, normal bigint, bulk bigint, scheduled bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    cursor     mailroom.cursors;
    seen       bigint;
    pending    bigint;
    later      bigint;
    newest     timestamptz;
    oldest     timestamptz;
    first      timestamptz;
    due        timestamptz;
    leased     timestamptz;
    after_txid xid8;
    after_id   bigint;
BEGIN
    waiting := 0;
    scheduled := 0;
    FOR cursor IN SELECT * FROM mailroom.cursors c ORDER BY c.lane LOOP
        -- The walk of the index begins where that of a claim does.
        IF cursor.last_txid >= pg_snapshot_xmax(cursor.low) THEN
            after_txid := cursor.last_txid;
            after_id := cursor.last_seq;
        ELSE
            after_txid := pg_snapshot_xmax(cursor.low);
            after_id := -9223372036854775808;
        END IF;
        -- Pending is what low does not see, without what high sees up to the position: the late transactions of
        -- both snapshots by their ids, then the range behind the position.
        WITH looked AS MATERIALIZED (
            SELECT t.* FROM public.tokens t
            WHERE t.lane = cursor.lane AND t.txid = ANY (ARRAY(SELECT pg_snapshot_xip(cursor.low)))
              AND NOT (pg_visible_in_snapshot(t.txid, cursor.high)
                       AND (t.txid, t.id) <= (cursor.last_txid, cursor.last_seq))
            UNION ALL
            SELECT t.* FROM public.tokens t
            WHERE t.lane = cursor.lane AND t.txid = ANY (ARRAY(SELECT pg_snapshot_xip(cursor.high)))
              AND t.txid >= pg_snapshot_xmax(cursor.low)
              AND (t.txid, t.id) <= (cursor.last_txid, cursor.last_seq)
            UNION ALL
            (SELECT t.* FROM public.tokens t
             WHERE t.lane = cursor.lane AND (t.txid, t.id) > (after_txid, after_id)
             ORDER BY t.txid, t.id LIMIT p_most)
            LIMIT p_most)
        SELECT (SELECT count(*) FROM looked), (SELECT max(s.created_at) FROM looked s),
               count(*) FILTER (WHERE coalesce(p.send_at <= clock_timestamp(), true)),
               count(*) FILTER (WHERE p.send_at > clock_timestamp()),
               min(coalesce(p.send_at, p.created_at)) FILTER (WHERE coalesce(p.send_at <= clock_timestamp(), true))
        INTO seen, newest, pending, later, oldest
        FROM (SELECT x::public.tokens AS token, x.* FROM looked x) p
        JOIN mailroom.actions k ON k.action = p.action
        LEFT JOIN public.accounts a ON a.id = p.account
        WHERE mailroom.fits(p.account, a.status, k.account_status) AND mailroom.sendable(p.token, k);
        -- There may be more behind. If none of those seen may be mailed, the newest of them stands for the others.
        IF seen >= p_most THEN
            pending := p_most;
            oldest := coalesce(oldest, newest);
        END IF;
        CASE cursor.lane
            WHEN 'urgent' THEN urgent := pending;
            WHEN 'normal' THEN normal := pending;
            ELSE bulk := pending;
        END CASE;
        scheduled := scheduled + later;
        waiting := least(waiting + pending, p_most);
        first := least(first, oldest);
    END LOOP;

    SELECT coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker NOT IN ('', 'paused', 'scheduled')), 0),
           coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker IN ('', 'paused')
               OR l.worker = 'scheduled' AND l.due_at <= clock_timestamp()), 0),
           scheduled + coalesce(sum(cardinality(l.tokens)) FILTER (WHERE l.worker = 'scheduled'
               AND l.due_at > clock_timestamp()), 0),
           min(l.due_at) FILTER (WHERE l.worker <> 'scheduled' OR l.due_at <= clock_timestamp())
    INTO in_flight, retrying, scheduled, due FROM mailroom.leases l;

    SELECT min(coalesce(t.send_at, t.created_at)) INTO leased
    FROM (SELECT u.id FROM (SELECT l.tokens FROM mailroom.leases l
                            WHERE l.worker <> 'scheduled' OR l.due_at <= clock_timestamp()
                            ORDER BY l.id LIMIT p_most) l,
                           unnest(l.tokens) u (id) LIMIT p_most) h
    JOIN public.tokens t ON t.id = h.id
    JOIN mailroom.actions k ON k.action = t.action
    LEFT JOIN public.accounts a ON a.id = t.account
    WHERE mailroom.fits(t.account, a.status, k.account_status) AND mailroom.sendable(t, k);
    oldest_unsettled := extract(epoch FROM clock_timestamp() - least(first, leased));

    is_paused := (SELECT j.paused_at IS NOT NULL FROM public.jobs j);
    IF NOT is_paused THEN
        oldest_due := greatest(extract(epoch FROM clock_timestamp() - least(first, due)), 0);
    END IF;
    rate := (SELECT r.rate FROM mailroom.rates r ORDER BY r.changed_at DESC LIMIT 1);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION mailroom.pulse IS
    'Returns the state of the queue in one row, cheaply: it reads the first p_most waiting tokens of each lane, and '
    'p_most means that many or more. scheduled ones are for later and count nowhere else. oldest_due is how many '
    'seconds the oldest sendable mail has waited, since it was requested or its lease was due; NULL while the queue is paused. oldest_unsettled is '
    'how many seconds ago the oldest mail was requested that waits or is in a lease, paused or not.';

CREATE FUNCTION mailroom.paused() RETURNS TABLE (paused_at timestamptz, pause_reason text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT j.paused_at, j.pause_reason FROM public.jobs j
$$;
COMMENT ON FUNCTION mailroom.paused IS
    'Returns when and why the queue was paused: one row, of NULLs if it is not paused.';

CREATE FUNCTION mailroom.pause(p_reason text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    UPDATE public.jobs j SET paused_at = clock_timestamp(), pause_reason = p_reason
$$;
COMMENT ON FUNCTION mailroom.pause IS
    'Stops handing out mail, to all workers. They still send what they hold.';

CREATE FUNCTION mailroom.resume(p_channel text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    was_paused boolean;
BEGIN
    -- A claim that saw an action paused has put its mails off before they are released.
    PERFORM FROM public.jobs j FOR NO KEY UPDATE;
    UPDATE public.jobs j SET paused_at = NULL, pause_reason = NULL WHERE j.paused_at IS NOT NULL;
    was_paused := FOUND;
    UPDATE mailroom.actions k SET paused_at = NULL, pause_reason = NULL, resumed_at = clock_timestamp()
    WHERE k.paused_at IS NOT NULL;
    IF FOUND THEN
        was_paused := true;
        PERFORM mailroom.release('paused');
    END IF;
    IF was_paused THEN
        PERFORM pg_notify(p_channel, '');
    END IF;
    RETURN was_paused;
END $$;
COMMENT ON FUNCTION mailroom.resume IS
    'Hands out mail again, that of paused actions too, and notifies the channel. Returns false if nothing was paused.';

CREATE FUNCTION mailroom.paused_actions() RETURNS TABLE (action text, paused_at timestamptz, pause_reason text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT k.action::text, k.paused_at, k.pause_reason FROM mailroom.actions k
    WHERE k.paused_at IS NOT NULL ORDER BY k.number
$$;
COMMENT ON FUNCTION mailroom.paused_actions IS
    'Returns the actions whose mails wait because SES could not render one, since when, and why.';

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

-- What the console asks each second while somebody views it. Each function reads a bounded number of rows,
-- however long the ledger is. Nothing here returns a secret or a code.

CREATE FUNCTION mailroom.traffic(p_span interval, p_step integer, p_most integer)
RETURNS TABLE (at timestamptz, sent bigint, retried bigint, unknown bigint, rejected bigint, dropped bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
    WITH bounds AS MATERIALIZED (
        SELECT floor(extract(epoch FROM n.now - p_span) / p_step)::bigint AS first,
               floor(extract(epoch FROM n.now) / p_step)::bigint AS last
        FROM (SELECT clock_timestamp() AS now) n
    ), newest AS MATERIALIZED (
        SELECT d.at, d.outcome FROM mailroom.deliveries d
        WHERE d.at >= to_timestamp((SELECT b.first * p_step FROM bounds b))
        ORDER BY d.at DESC LIMIT p_most
    ), counted AS (
        SELECT floor(extract(epoch FROM e.at) / p_step)::bigint AS number,
               count(*) FILTER (WHERE e.outcome = 'sent') AS sent,
               count(*) FILTER (WHERE e.outcome = 'retried') AS retried,
               count(*) FILTER (WHERE e.outcome = 'unknown') AS unknown,
               count(*) FILTER (WHERE e.outcome = 'rejected') AS rejected,
               count(*) FILTER (WHERE e.outcome IN ('expired', 'skipped', 'suppressed')) AS dropped
        FROM newest e GROUP BY 1)
    SELECT to_timestamp(i.number * p_step), coalesce(c.sent, 0), coalesce(c.retried, 0),
           coalesce(c.unknown, 0), coalesce(c.rejected, 0), coalesce(c.dropped, 0)
    FROM bounds b CROSS JOIN generate_series(b.first, b.last) AS i (number)
    LEFT JOIN counted c ON c.number = i.number
    ORDER BY i.number
$$;
COMMENT ON FUNCTION mailroom.traffic IS
    'Counts the ledger''s rows of the last p_span by outcome and by intervals of p_step seconds, which begin at '
    'whole multiples of it, oldest first; the last one is the present. dropped counts expired, skipped and suppressed. It '
    'counts the newest p_most rows: if it finds that many, the first interval with any may lack some.';

CREATE FUNCTION mailroom.ledger_ends(OUT first bigint, OUT last bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT (SELECT d.id FROM mailroom.deliveries d ORDER BY d.id LIMIT 1),
           (SELECT d.id FROM mailroom.deliveries d ORDER BY d.id DESC LIMIT 1)
$$;
COMMENT ON FUNCTION mailroom.ledger_ends IS
    'Returns the ids of the ledger''s first and last row; NULLs if it is empty.';

-- The settings make it walk the primary key and probe the rest, whatever the planner believes.
CREATE FUNCTION mailroom.recent_deliveries(p_outcome text, p_before bigint, p_look bigint, p_limit integer)
RETURNS TABLE (id bigint, token bigint, action text, email text, login text, subject text, attempt integer, outcome text,
               result text, provider text, message_id text, detail text, worker text, at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
    SELECT d.id, d.token, t.action::text, coalesce(nullif(d.recipient, ''), t.email), t.login,
           coalesce(t.subject, nullif(d.subject, '')), d.attempt, d.outcome, d.result, d.provider, d.message_id, d.detail, d.worker, d.at
    FROM mailroom.deliveries d
    LEFT JOIN public.tokens t ON t.id = d.token AND mailroom.is_of(d.fingerprint, t.secret)
    WHERE d.id < p_before AND d.id >= p_before - p_look
      AND (p_outcome IS NULL OR d.outcome = p_outcome)
    ORDER BY d.id DESC LIMIT p_limit
$$;
COMMENT ON FUNCTION mailroom.recent_deliveries IS
    'Returns the ledger''s rows before the id p_before, newest first, of one outcome, or of any if it is NULL; it '
    'reads the p_look ids before p_before. A deleted token has no action.';

-- Deleting what is old, in batches. An age below zero counts as zero: it would delete tokens that are still valid.

CREATE FUNCTION mailroom.prune_deliveries(p_older_than interval, p_batch integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH deleted AS (
        DELETE FROM mailroom.deliveries d
        WHERE d.id = ANY (ARRAY(
            SELECT o.id FROM mailroom.deliveries o
            WHERE o.at < statement_timestamp() - greatest(p_older_than, '0')
            ORDER BY o.at LIMIT p_batch FOR UPDATE SKIP LOCKED))
        RETURNING d.id)
    SELECT count(*) FROM deleted
$$;
COMMENT ON FUNCTION mailroom.prune_deliveries IS
    'Deletes up to p_batch of the ledger''s rows that are older, and returns how many; 0 means that none is left.';

CREATE FUNCTION mailroom.prune_events(p_older_than interval, p_batch integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH deleted AS (
        DELETE FROM mailroom.events e
        WHERE e.id = ANY (ARRAY(
            SELECT o.id FROM mailroom.events o
            WHERE o.received_at < statement_timestamp() - greatest(p_older_than, '0')
            ORDER BY o.received_at LIMIT p_batch FOR UPDATE SKIP LOCKED))
        RETURNING e.id
    ), unreadable AS (
        DELETE FROM mailroom.unreadable_events u
        WHERE u.id = ANY (ARRAY(
            SELECT o.id FROM mailroom.unreadable_events o
            WHERE o.received_at < statement_timestamp() - greatest(p_older_than, '0')
            ORDER BY o.received_at LIMIT p_batch FOR UPDATE SKIP LOCKED))
        RETURNING u.id)
    SELECT (SELECT count(*) FROM deleted) + (SELECT count(*) FROM unreadable)
$$;
COMMENT ON FUNCTION mailroom.prune_events IS
    'Deletes up to p_batch events that are older, and as many messages that could not be read, and returns how many; 0 '
    'means that none is left. Suppressions stay.';

CREATE FUNCTION mailroom.prune_tokens(p_after bigint, p_older_than interval, p_batch integer)
RETURNS TABLE (last_seen bigint, deleted bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH seen AS (
        SELECT t.id FROM public.tokens t WHERE t.id > p_after ORDER BY t.id LIMIT p_batch
    ), old AS (
        SELECT t.id FROM public.tokens t
        WHERE t.id = ANY (ARRAY(SELECT s.id FROM seen s))
          -- One to an address that cannot be mailed never had a life. Correcting the address needs it.
          AND (coalesce(nullif(t.expires_at, 'epoch'), t.created_at)
                   < statement_timestamp() - greatest(p_older_than, '0')
               OR t.consumed_at < statement_timestamp() - greatest(p_older_than, '0'))
          AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM public.tokens t WHERE t.id = ANY (ARRAY(SELECT o.id FROM old o)) RETURNING t.id)
    SELECT (SELECT max(s.id) FROM seen s), (SELECT count(*) FROM gone)
$$;
COMMENT ON FUNCTION mailroom.prune_tokens IS
    'Checks the p_batch tokens that follow the id p_after, and deletes those that have been expired or consumed '
    'for longer and are in no lease. A locked token is skipped. Returns the last one checked, NULL at the end, '
    'and how many were deleted.';

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

-- Restores without the cursor.
--
-- A restore of rows alone (pg_restore --data-only --disable-triggers) into a migrated database keeps that
-- database's cursor, which says nothing about the restored tokens. The next claim cannot notice it: the cluster's
-- identifier is right. Restored tokens lie in its window only where the cursor has not moved since the migration,
-- which began at 1. After a failover the ledger can rightly have a token that waits.
CREATE FUNCTION mailroom.misplaced_tokens() RETURNS TABLE (unreachable bigint, repeated bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    SELECT (SELECT count(*) FROM public.tokens t
            WHERE t.txid >= pg_snapshot_xmax(pg_current_snapshot())
              AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp()
              AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)),
           (SELECT count(DISTINCT t.id)
            FROM (SELECT x.token, x.fingerprint FROM mailroom.deliveries x ORDER BY x.id DESC LIMIT 1000) d
            JOIN public.tokens t ON t.id = d.token AND mailroom.is_of(d.fingerprint, t.secret)
            JOIN mailroom.cursors c ON c.lane = t.lane
            WHERE t.consumed_at IS NULL AND t.expires_at > clock_timestamp()
              AND pg_snapshot_xmax(c.low) = '1' AND pg_visible_in_snapshot(t.txid, c.high)
              AND NOT pg_visible_in_snapshot(t.txid, c.low)
              AND (t.txid, t.id) > (c.last_txid, c.last_seq)
              AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l))
    FROM public.jobs j
    WHERE j.system_identifier = (pg_control_system()).system_identifier
$$;
COMMENT ON FUNCTION mailroom.misplaced_tokens IS
    'Returns how many valid tokens a restore without the cursor misplaced: unreachable have transaction ids that '
    'this cluster has not given out, so they would not be mailed; repeated are in the newest 1,000 rows of the '
    'ledger and would be mailed again. No row if the next claim restarts the cursor anyway.';

CREATE FUNCTION mailroom.take_over() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    job public.jobs;
BEGIN
    SELECT * INTO STRICT job FROM public.jobs j FOR NO KEY UPDATE;
    PERFORM mailroom.restart_cursor(job.moved_at);
END $$;
COMMENT ON FUNCTION mailroom.take_over IS
    'Takes over tokens after a restore without the cursor: valid ones that the cursor has not passed and the '
    'ledger does not have will be mailed.';

-- Adopted tables: an application's own table of users. `mailroom adopt` writes its row here, its triggers and
-- functions. A token of its users has the table in user_table and the user's key in subject.

CREATE TABLE mailroom.adopted (
    user_table    regclass PRIMARY KEY,
    name          text NOT NULL UNIQUE,
    key_column    text NOT NULL,
    email         text NOT NULL,
    login         text NOT NULL DEFAULT 'NULL',
    locale        text NOT NULL DEFAULT 'NULL',
    pending_when  text NOT NULL DEFAULT 'false',
    active_when   text NOT NULL DEFAULT 'true',
    on_activation text,
    search_path   text NOT NULL,
    adopted_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE mailroom.adopted IS
    'The application''s own tables of users. `mailroom adopt` writes it, beside the triggers of each table.';
COMMENT ON COLUMN mailroom.adopted.user_table IS 'The table.';
COMMENT ON COLUMN mailroom.adopted.name IS
    'The end of the names of its functions: mailroom.watch_NAME is the function of the triggers, which calls '
    'mailroom.report_NAME, mailroom.lock_NAME reads and locks a user, and mailroom.activate_NAME runs the assignments.';
COMMENT ON COLUMN mailroom.adopted.key_column IS 'The column that is unique, whose text is the subject of tokens.';
COMMENT ON COLUMN mailroom.adopted.email IS 'An expression of the table''s columns: the address.';
COMMENT ON COLUMN mailroom.adopted.login IS 'An expression: the name that templates show.';
COMMENT ON COLUMN mailroom.adopted.locale IS 'An expression: the language, as a BCP 47 tag.';
COMMENT ON COLUMN mailroom.adopted.pending_when IS
    'A condition: the user waits for activation. It corresponds to the status provisioned.';
COMMENT ON COLUMN mailroom.adopted.active_when IS
    'A condition: the user, who is not pending, is active. A user who is neither is suspended, and gets no mail.';
COMMENT ON COLUMN mailroom.adopted.on_activation IS
    'The assignments to the user''s row when an activation is consumed; NULL for none.';
COMMENT ON COLUMN mailroom.adopted.search_path IS 'The search_path with which the expressions are evaluated.';
COMMENT ON COLUMN mailroom.adopted.adopted_at IS 'When the table was adopted.';

CREATE TYPE mailroom.adopted_user AS (
    id     text,
    email  text,
    login  text,
    locale text,
    status text
);

-- A row of an adopted table after a statement, or before it.
CREATE TYPE mailroom.user_state AS (
    id     text,
    email  text,
    login  text,
    locale text,
    status text,
    is_new boolean
);

-- A user whom a statement inserted, changed or deleted. was is NULL for a new user, and status for one that is gone.
CREATE TYPE mailroom.user_change AS (
    id        text,
    email     text,
    login     text,
    locale    text,
    status    text,
    was       text,
    was_email text
);

-- Texts are cut where more of them is of no use, since a part of a statement's users is held in memory.
CREATE FUNCTION mailroom.user_facts(p_table mailroom.adopted) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('left(%I::text, 256) AS id, left((%s)::text, 255) AS email, left((%s)::text, 255) AS login, '
                  'left((%s)::text, 36) AS locale, '
                  'CASE WHEN (%s) THEN ''provisioned'' WHEN (%s) THEN ''active'' ELSE ''suspended'' END AS status',
                  p_table.key_column, p_table.email, p_table.login, p_table.locale, p_table.pending_when,
                  p_table.active_when)
$$;
COMMENT ON FUNCTION mailroom.user_facts IS
    'Returns the select list that makes a mailroom.adopted_user of a row of an adopted table.';

CREATE FUNCTION mailroom.adoption_of(p_table regclass) RETURNS regclass
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH RECURSIVE above (id, n) AS (
        SELECT p_table::oid, 0
        UNION ALL
        SELECT i.inhparent, a.n + 1 FROM above a JOIN pg_inherits i ON i.inhrelid = a.id)
    SELECT a.user_table FROM above JOIN mailroom.adopted a ON a.user_table = above.id ORDER BY above.n LIMIT 1
$$;
COMMENT ON FUNCTION mailroom.adoption_of IS
    'Returns an adopted table, or the one that a partition belongs to; NULL if there is none.';

CREATE FUNCTION mailroom.mailable_text(p_text text, p_length integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN nullif(left(regexp_replace(p_text, '[\u0001-\u001f\u007f-\u009f]', '', 'g'), p_length), '');
COMMENT ON FUNCTION mailroom.mailable_text IS
    'Returns a text without control characters, cut to a length; NULL if nothing is left.';

CREATE FUNCTION mailroom.mailable_locale(p_locale text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_locale ~ '^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*$' AND char_length(p_locale) <= 35
            THEN p_locale END;
COMMENT ON FUNCTION mailroom.mailable_locale IS 'Returns a language that is a BCP 47 tag, and NULL for any other text.';

-- The first condition holds for nearly all users.
CREATE FUNCTION mailroom.user_fault(p_id text, p_email text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_email ~ '^[^@\u0001-\u001f\u007f-\u009f]+@[^@\u0001-\u001f\u007f-\u009f]+$'
                 AND char_length(p_email) <= 254
                 AND p_id ~ '^[^\u0001-\u001f\u007f-\u009f]+$' AND char_length(p_id) <= 255 THEN NULL
            WHEN coalesce(p_email, '') = '' THEN 'the user has no address'
            WHEN char_length(p_email) > 254 THEN 'the address has more than 254 characters'
            WHEN p_email ~ '[\u0001-\u001f\u007f-\u009f]' THEN 'the address has a control character'
            WHEN p_email !~ '^[^@]+@[^@]+$' THEN 'the address does not have exactly one @, with something on both sides'
            WHEN p_id = '' THEN 'the user''s key is empty'
            WHEN char_length(p_id) > 255 THEN 'the user''s key has more than 255 characters'
            WHEN p_id ~ '[\u0001-\u001f\u007f-\u009f]' THEN 'the user''s key has a control character'
       END;
COMMENT ON FUNCTION mailroom.user_fault IS 'Returns why a user of an adopted table cannot be mailed; NULL if one can.';

-- Tokens are locked in the order of their ids, so that two statements with the same users cannot deadlock. A session
-- plans this once, maybe for one user and an empty table, and with it ends the tokens of ten thousand. So nothing is
-- joined that could be joined the other way round.
CREATE FUNCTION mailroom.end_unfit(p_table regclass, p_users mailroom.user_change[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off AS $$
DECLARE
    now    CONSTANT timestamptz := clock_timestamp();
    ids    bigint[];
    whys   text[];
    reason text;
BEGIN
    SELECT array_agg(t.id ORDER BY t.id), array_agg(t.why ORDER BY t.id) INTO ids, whys
    FROM unnest(p_users) u, LATERAL (
        SELECT x.id, CASE WHEN u.status IS NULL THEN 'user deleted'
                          WHEN u.email IS DISTINCT FROM u.was_email AND (k.has_link OR k.needs_code) THEN 'address changed'
                          WHEN u.status = 'suspended' THEN 'suspended'
                          WHEN u.status = 'active' THEN 'activated'
                          ELSE 'ineligible' END AS why
        FROM public.tokens x
        JOIN mailroom.actions k ON k.action = x.action
        WHERE x.subject = u.id AND x.user_table = p_table AND x.consumed_at IS NULL AND x.ended_at IS NULL
          AND (u.status IS NULL
               OR u.email IS DISTINCT FROM u.was_email AND (k.has_link OR k.needs_code)
               OR u.status = 'suspended' OR u.status <> k.account_status::text)
        OFFSET 0) t;
    PERFORM FROM public.tokens t WHERE t.id = ANY (ids) ORDER BY t.id FOR NO KEY UPDATE;
    FOREACH reason IN ARRAY ARRAY(SELECT DISTINCT w FROM unnest(whys) w) LOOP
        UPDATE public.tokens t SET expires_at = least(t.expires_at, now), ended_at = now, ended_as = reason
        WHERE t.id = ANY (ARRAY(SELECT i.id FROM unnest(ids, whys) i (id, why) WHERE i.why = reason))
          AND t.consumed_at IS NULL AND t.ended_at IS NULL;
    END LOOP;
END $$;
COMMENT ON FUNCTION mailroom.end_unfit IS
    'Ends the tokens that no longer fit their users. Notices do not depend on the address.';

-- A token to an address that cannot be mailed has ended from the start, so that no claim looks at it.
CREATE FUNCTION mailroom.request_activations(p_table regclass, p_users mailroom.user_change[], p_are_many boolean)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off AS $$
DECLARE
    now      CONSTANT timestamptz := clock_timestamp();
    rejected bigint[];
BEGIN
    WITH new AS (
        INSERT INTO public.tokens (action, user_table, subject, email, login, locale, lane, expires_at, ended_at,
                                   ended_as)
        SELECT k.action, p_table, coalesce(mailroom.mailable_text(u.id, 255), '?'),
               coalesce(mailroom.mailable_text(u.email, 254), ''), mailroom.mailable_text(u.login, 254),
               mailroom.mailable_locale(u.locale), CASE WHEN p_are_many THEN 'bulk' ELSE k.lane END,
               CASE WHEN f.fault IS NULL THEN statement_timestamp() + k.lifetime ELSE 'epoch' END,
               CASE WHEN f.fault IS NOT NULL THEN now END, f.fault
        FROM mailroom.actions k,
             unnest(p_users) WITH ORDINALITY AS u (id, email, login, locale, status, was, was_email, n),
             LATERAL mailroom.user_fault(u.id, u.email) AS f (fault)
        WHERE k.activates AND u.status = 'provisioned'
          AND (u.was IS NULL
               OR u.was = 'active' AND u.email IS DISTINCT FROM u.was_email
               OR (u.was = 'suspended' OR u.email IS DISTINCT FROM u.was_email)
                  AND EXISTS (SELECT FROM public.tokens t
                              WHERE t.subject = u.id AND t.user_table = p_table AND t.action = k.action
                                AND t.consumed_at IS NULL))
        ORDER BY u.n
        RETURNING id, ended_as)
    SELECT array_agg(n.id) INTO rejected FROM new n WHERE n.ended_as IS NOT NULL;
    IF rejected IS NOT NULL THEN
        INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, detail)
        SELECT t.id, mailroom.fingerprint(t.secret), 0, 'rejected', t.ended_as
        FROM public.tokens t WHERE t.id = ANY (rejected);
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.request_activations IS
    'Creates the activation tokens of new pending users, and of pending ones who had one and whose address changed or '
    'who are not suspended any more. A user that cannot be mailed is a rejection in the ledger.';

-- The function of the triggers, mailroom.watch_NAME, has the rights of the table's owner. It calls mailroom.report_NAME,
-- which only that owner may call, and which calls this with the name. So an owner can report on the own table only.
--
-- It handles large statements in parts, since PostgreSQL holds a part in memory. No failure may fail the application's
-- statement. What may fail reads only, so that its subtransaction gets no transaction id.
--
-- Where a trigger of the application's updates the users of the statement that fired it, Mailroom's fires first for the
-- inner statement, and then for the outer one with rows that are out of date. So this reads them again.
CREATE FUNCTION mailroom.users_changed(p_name text, p_table regclass, p_event text, p_states mailroom.user_state[],
                                       p_are_many boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    import_rows CONSTANT integer := 50;
    is_again    boolean;
    one         mailroom.user_state;
    adopted     regclass;
    users       mailroom.user_change[];
BEGIN
    -- A shorter way for the usual sign-up.
    IF p_event = 'INSERT' AND cardinality(p_states) = 1 AND NOT p_are_many AND pg_trigger_depth() = 1
       AND coalesce(current_setting('mailroom.inner_change', true), '') <> 'on' THEN
        one := p_states[1];
        IF one.email ~ '^[^@\u0001-\u001f\u007f-\u009f]+@[^@\u0001-\u001f\u007f-\u009f]+$'
           AND one.id ~ '^[^\u0001-\u001f\u007f-\u009f]+$' AND char_length(one.email) < 255
           AND char_length(one.id) < 256 THEN
            INSERT INTO public.tokens (action, user_table, subject, email, login, locale, lane, expires_at)
            SELECT k.action, a.user_table, one.id, one.email, mailroom.mailable_text(one.login, 254),
                   mailroom.mailable_locale(one.locale), k.lane, statement_timestamp() + k.lifetime
            FROM mailroom.actions k, mailroom.adopted a
            WHERE k.activates AND a.name = p_name AND a.user_table = p_table;
            IF FOUND THEN
                RETURN;
            END IF;
        END IF;
    END IF;
    IF pg_trigger_depth() > 1 THEN
        PERFORM set_config('mailroom.inner_change', 'on', true);
    END IF;
    is_again := p_event <> 'DELETE' AND current_setting('mailroom.inner_change', true) = 'on';
    SELECT a.user_table INTO adopted FROM mailroom.adopted a WHERE a.name = p_name;
    IF adopted IS NULL OR p_table <> adopted AND mailroom.adoption_of(p_table) IS DISTINCT FROM adopted THEN
        RAISE WARNING 'mailroom: % is not adopted, and has its triggers', p_table
            USING HINT = 'Run `mailroom doctor`.';
        RETURN;
    ELSIF p_event = 'TRUNCATE' THEN
        PERFORM mailroom.end_users(adopted, 'user deleted');
        RETURN;
    ELSIF p_event = 'INSERT' THEN
        users := ARRAY(SELECT ROW(s.id, s.email, s.login, s.locale, s.status, NULL, NULL)::mailroom.user_change
                       FROM unnest(p_states) s);
    ELSE
        users := ARRAY(
            SELECT ROW(s.id, max(s.email) FILTER (WHERE s.is_new), max(s.login) FILTER (WHERE s.is_new),
                       max(s.locale) FILTER (WHERE s.is_new), max(s.status) FILTER (WHERE s.is_new),
                       max(s.status) FILTER (WHERE NOT s.is_new), max(s.email) FILTER (WHERE NOT s.is_new)
                   )::mailroom.user_change
            FROM unnest(p_states) s GROUP BY s.id
            HAVING NOT bool_and(s.is_new)
            ORDER BY s.id);
    END IF;
    IF is_again THEN
        BEGIN
            users := ARRAY(
                SELECT ROW(u.id, l.email, l.login, l.locale, l.status, u.was, u.was_email)::mailroom.user_change
                FROM unnest(users) u, LATERAL mailroom.lock_user(adopted, u.id) l);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'mailroom: the users of % cannot be read: %', adopted, SQLERRM
                USING HINT = 'Run `mailroom doctor`.';
            RETURN;
        END;
    END IF;
    IF p_event <> 'INSERT' THEN
        PERFORM mailroom.end_unfit(adopted, users);
    END IF;
    IF p_event <> 'DELETE' THEN
        PERFORM mailroom.request_activations(adopted, users, p_are_many OR cardinality(users) > import_rows);
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.users_changed IS
    'Ends and creates tokens for users whom a statement inserted, updated or deleted. If they cannot be read, as after '
    'a column was dropped, it warns.';

CREATE FUNCTION mailroom.end_users(p_table regclass, p_why text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    UPDATE public.tokens t SET expires_at = least(t.expires_at, clock_timestamp()), ended_at = clock_timestamp(),
                               ended_as = p_why
    WHERE t.user_table = p_table AND t.consumed_at IS NULL AND t.ended_at IS NULL
$$;
COMMENT ON FUNCTION mailroom.end_users IS 'Ends the tokens of all users of an adopted table.';

-- The table's owner could make it run with the rights of its caller, which are those of Mailroom's owner.
CREATE FUNCTION mailroom.owners_function(p_name text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    quoted CONSTANT text := format('mailroom.%I', p_name);
BEGIN
    IF EXISTS (SELECT FROM pg_proc p WHERE p.oid = to_regprocedure(quoted || '(text)') AND NOT p.prosecdef) THEN
        RAISE EXCEPTION 'mailroom: % is not SECURITY DEFINER any more', quoted
            USING ERRCODE = 'insufficient_privilege', HINT = 'Run `mailroom doctor`.';
    END IF;
    RETURN quoted;
END $$;
COMMENT ON FUNCTION mailroom.owners_function IS
    'Returns the quoted name of a function of an adopted table, which runs with its owner''s rights; an error if not.';

-- A key that its type does not have is nobody's. It is only tried with PostgreSQL's own types, since a cast to another may
-- call what the table's owner wrote; and it reads only, so that the subtransaction gets no transaction id.
CREATE FUNCTION mailroom.lock_user(p_table regclass, p_key text) RETURNS mailroom.adopted_user
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    name   text;
    kind   text;
    person mailroom.adopted_user;
BEGIN
    SELECT a.name, format_type(t.oid, NULL) INTO name, kind
    FROM mailroom.adopted a
    JOIN pg_class c ON c.oid = a.user_table
    LEFT JOIN pg_attribute k ON k.attrelid = c.oid AND k.attname = a.key_column
    LEFT JOIN pg_type t ON t.oid = k.atttypid AND t.typnamespace = 'pg_catalog'::regnamespace AND t.typcategory <> 'S'
    WHERE a.user_table = p_table;
    IF kind IS NOT NULL THEN
        BEGIN
            EXECUTE format('SELECT $1::%s', kind) USING p_key;
        EXCEPTION WHEN data_exception THEN
            RETURN NULL;
        END;
    END IF;
    IF name IS NOT NULL THEN
        EXECUTE format('SELECT u.* FROM %s($1) u', mailroom.owners_function('lock_' || name)) INTO person USING p_key;
        person.login := mailroom.mailable_text(person.login, 254);
        person.locale := mailroom.mailable_locale(person.locale);
    END IF;
    RETURN person;
END $$;
COMMENT ON FUNCTION mailroom.lock_user IS
    'Locks a user of an adopted table until the transaction ends, and returns it; NULL if there is none.';

CREATE FUNCTION mailroom.activate_user(p_table regclass, p_key text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    rule mailroom.adopted;
BEGIN
    SELECT * INTO rule FROM mailroom.adopted a WHERE a.user_table = p_table;
    IF rule.on_activation IS NOT NULL THEN
        EXECUTE format('SELECT %s($1)', mailroom.owners_function('activate_' || rule.name)) USING p_key;
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.activate_user IS 'Runs the assignments of an adopted table on a user''s row.';

CREATE FUNCTION mailroom.adopted_table(p_table regclass) RETURNS regclass
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    tables regclass[] := ARRAY(SELECT a.user_table FROM mailroom.adopted a
                               WHERE a.user_table = coalesce(p_table, a.user_table) ORDER BY a.adopted_at);
BEGIN
    IF cardinality(tables) = 1 THEN
        RETURN tables[1];
    ELSIF cardinality(tables) > 1 THEN
        RAISE EXCEPTION 'mailroom: the user may be one of several tables: %', array_to_string(tables, ', ')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Name the table with user_table.';
    ELSIF p_table IS NOT NULL THEN
        RAISE EXCEPTION 'mailroom: the table % is not adopted', p_table
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Run `mailroom adopt`.';
    END IF;
    RAISE EXCEPTION 'mailroom: no table of users is adopted'
        USING ERRCODE = 'invalid_parameter_value', HINT = 'Run `mailroom adopt`.';
END $$;
COMMENT ON FUNCTION mailroom.adopted_table IS
    'Returns this adopted table, or the only one if it is NULL; an error if there is none or several.';

CREATE FUNCTION mailroom.lacks_activation(p_table regclass, p_key text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT NOT EXISTS (SELECT FROM public.tokens t JOIN mailroom.actions k ON k.action = t.action AND k.activates
                       WHERE t.subject = p_key AND t.user_table = p_table)
$$;
COMMENT ON FUNCTION mailroom.lacks_activation IS
    'Returns whether a user of an adopted table never had an activation, for `mailroom adopt --mail-existing`.';

CREATE FUNCTION mailroom.adopted_below(p_table regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE below (id) AS (
        SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = p_table
        UNION
        SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.id)
    SELECT b.id::regclass FROM below b JOIN pg_class c ON c.oid = b.id
    WHERE c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM mailroom.adopted a WHERE a.user_table = b.id)
    ORDER BY b.id
$$;
COMMENT ON FUNCTION mailroom.adopted_below IS
    'Returns the partitions of a table, and the tables that inherit from it, except those that are adopted themselves. '
    'Each needs triggers of its own for the statements that name it.';

-- A trigger sees neither a column that is generated when it is read, nor ctid and its like.
CREATE FUNCTION mailroom.facts_query(p_table mailroom.adopted) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT %s FROM (SELECT %s LIMIT 0) AS %I', mailroom.user_facts(p_table),
                  string_agg(format('NULL::%s AS %I', format_type(a.atttypid, a.atttypmod), a.attname), ', '
                             ORDER BY a.attnum), c.relname)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.oid = p_table.user_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
    GROUP BY c.relname
$$;
COMMENT ON FUNCTION mailroom.facts_query IS
    'Returns the query that evaluates the expressions of an adopted table as its triggers do, on no row; it fails if they '
    'do not fit.';

-- What the expressions do, they do with the rights of the table's owner: so this calls the functions, for no user.
CREATE FUNCTION mailroom.adoption_faults() RETURNS TABLE (user_table text, fault text, remedy text, works boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    it_works CONSTANT text := 'MR000';
    pinned   CONSTANT text := current_setting('search_path');
    adopted  mailroom.adopted;
    again    text;
    schemas  name[];
BEGIN
    FOR adopted IN SELECT a.* FROM mailroom.adopted a ORDER BY a.adopted_at LOOP
        user_table := adopted.user_table::text;
        again := format('run `mailroom adopt %s --apply` again', user_table);
        works := false;
        IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = adopted.user_table) THEN
            fault := format('the table with the number %s was dropped, and is adopted', user_table);
            remedy := format('run `mailroom adopt %s --drop`', user_table);
            RETURN NEXT;
            CONTINUE;
        END IF;
        FOR fault, remedy IN
            SELECT CASE WHEN t.oid IS NULL THEN format('%s lacks the trigger %s', o.id, o.trigger)
                        ELSE format('the trigger %s on %s is disabled', o.trigger, o.id) END,
                   CASE WHEN t.oid IS NULL THEN again
                        ELSE format('ALTER TABLE %s ENABLE TRIGGER %s', o.id, o.trigger) END
            FROM (SELECT b.id, 'mailroom_' || e.event AS trigger
                  FROM (SELECT adopted.user_table AS id UNION ALL SELECT mailroom.adopted_below(adopted.user_table)) b,
                       unnest('{insert,update,delete,truncate}'::text[]) e (event)
                  WHERE e.event <> 'truncate' OR b.id = adopted.user_table) o
            LEFT JOIN pg_trigger t ON t.tgrelid = o.id AND t.tgname = o.trigger
                AND t.tgfoid = to_regprocedure(format('mailroom.%I()', 'watch_' || adopted.name))
            WHERE t.oid IS NULL OR t.tgenabled NOT IN ('O', 'A')
        LOOP
            RETURN NEXT;
        END LOOP;
        FOR fault IN
            SELECT CASE WHEN NOT p.prosecdef THEN format('mailroom.%I is not SECURITY DEFINER any more', p.proname)
                        WHEN e.of_mailroom AND p.proowner = n.nspowner
                            THEN format('%I may not call mailroom.%I', pg_get_userbyid(w.proowner), p.proname)
                        ELSE format('mailroom.%I belongs to %I', p.proname, pg_get_userbyid(p.proowner)) END
            FROM (VALUES ('watch_', false), ('lock_', false), ('activate_', false), ('report_', true)) e (kind, of_mailroom)
            JOIN pg_namespace n ON n.nspname = 'mailroom'
            JOIN pg_class c ON c.oid = adopted.user_table
            JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = e.kind || adopted.name
            LEFT JOIN pg_proc w ON e.of_mailroom AND w.pronamespace = n.oid AND w.proname = 'watch_' || adopted.name
            WHERE NOT p.prosecdef
               OR p.proowner NOT IN (n.nspowner, c.relowner) AND NOT pg_has_role(p.proowner, n.nspowner, 'MEMBER')
               OR e.of_mailroom AND p.proowner <> n.nspowner
               OR NOT has_function_privilege(w.proowner, p.oid, 'EXECUTE')
               OR NOT has_schema_privilege(w.proowner, n.oid, 'USAGE')
        LOOP
            fault := format('%s: %s', user_table, fault);
            remedy := again;
            RETURN NEXT;
        END LOOP;
        IF to_regprocedure(format('mailroom.%I(regclass, text, mailroom.user_state[], boolean)',
                                  'report_' || adopted.name)) IS NULL THEN
            fault := format('%s: mailroom.%I does not exist', user_table, 'report_' || adopted.name);
            remedy := again;
            RETURN NEXT;
        END IF;
        BEGIN
            IF current_setting('transaction_read_only') = 'off' THEN
                PERFORM mailroom.lock_user(adopted.user_table, NULL);
                PERFORM mailroom.activate_user(adopted.user_table, NULL);
            END IF;
            RAISE EXCEPTION USING ERRCODE = it_works;
        EXCEPTION
            WHEN SQLSTATE 'MR000' THEN
                NULL;
            WHEN insufficient_privilege THEN
                fault := format('%s: %s', user_table, SQLERRM);
                remedy := format('grant it again to %s, the owner of Mailroom''s schema, or to the owner of the table; '
                                 'or %s', current_user, again);
                RETURN NEXT;
            WHEN OTHERS THEN
                fault := format('%s: %s', user_table, SQLERRM);
                remedy := again || ', with the options that name what changed';
                RETURN NEXT;
        END;
        PERFORM set_config('search_path', adopted.search_path, true);
        schemas := pg_catalog.current_schemas(false);
        PERFORM pg_catalog.set_config('search_path', pinned, true);
        FOR fault, remedy IN
            SELECT format('every user may CREATE in the schema %I, which the search_path of %s reaches', n.nspname,
                          user_table),
                   format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', n.nspname)
            FROM pg_namespace n
            WHERE n.nspname = ANY (schemas) AND has_schema_privilege('public', n.oid, 'CREATE')
        LOOP
            works := true;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION mailroom.adoption_faults IS
    'Returns why an adopted table does not work any more: a column, a trigger, a right or the table itself is gone. If it '
    'works, there is a risk.';

CREATE FUNCTION mailroom.adopted_count() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT count(*) FROM mailroom.adopted
$$;
COMMENT ON FUNCTION mailroom.adopted_count IS 'Returns how many tables are adopted.';

-- The end of each migration: what it is, and who may call what. `mailroom roles` grants the rest to roles.

CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 4;
COMMENT ON FUNCTION mailroom.schema_version IS
    'Returns the number of the last migration. Mailroom''s programs compare it with the one that they need.';

SELECT mailroom.finish_migration();

-- A trigger does not check who may call its function, but any user that may can attach it to a table.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom FROM PUBLIC;
-- The user that inserts into tokens calls the defaults of its columns, its trigger's condition and its check.
GRANT EXECUTE ON FUNCTION mailroom.random_secret, mailroom.random_code, mailroom.is_sound, mailroom.is_incomplete TO PUBLIC;
