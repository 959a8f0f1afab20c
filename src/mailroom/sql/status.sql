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
