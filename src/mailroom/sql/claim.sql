-- Claiming: the next messages, in leases.

-- One recipient of one mail. txid says where the cursor stands after it; doubtful, that mailroom.screen decides
-- whether it goes out.
CREATE TYPE mailroom.message AS (
    token        bigint,
    action       text,
    email        text,
    login        text,
    secret       bytea,
    code         text,
    locale       text,
    data         jsonb,
    expires_in_s integer,
    txid         xid8,
    account      bigint,
    doubtful     boolean
);

-- A life that has no end, or is longer than 68 years, is the longest one that fits. Times are subtracted, since
-- adding a lifetime of days costs the time zone's rules for each token.
CREATE FUNCTION mailroom.life_s(p_from timestamptz, p_expires_at timestamptz, p_lifetime interval) RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN least(greatest(p_expires_at, p_from), p_from + interval '2147483647 s') - p_from <> p_lifetime
            THEN nullif(greatest(1, extract(epoch FROM least(greatest(p_expires_at, p_from),
                                                             p_from + interval '2147483647 s')
                                                       - p_from)::integer),
                        least(extract(epoch FROM p_lifetime), 2147483647)::integer) END;
COMMENT ON FUNCTION mailroom.life_s IS
    'Returns the life of a token in seconds; NULL if it is the lifetime of its action.';

-- Of most messages these are nothing, and an array of nothing costs as much as one of something.
CREATE FUNCTION mailroom.fields_of(p_messages mailroom.message[])
RETURNS TABLE (tokens bigint[], actions text[], emails text[], logins text[], secrets bytea[], codes text[],
               locales text[], data jsonb[], expires_in_s integer[])
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT array_agg(m.token), array_agg(m.action), array_agg(m.email), array_agg(m.login), array_agg(m.secret),
           array_agg(m.code), CASE WHEN bool_or(m.locale <> '') THEN array_agg(m.locale) END,
           CASE WHEN count(m.data) > 0 THEN array_agg(m.data) END,
           CASE WHEN count(m.expires_in_s) > 0 THEN array_agg(m.expires_in_s) END
    FROM unnest(p_messages) m;
END;
COMMENT ON FUNCTION mailroom.fields_of IS
    'Returns the fields of messages as arrays. locales, data and expires_in_s are NULL if no message has one.';

-- Urgent goes before normal, and normal before bulk. But of what claims hand out each lower lane gets a tenth while
-- it has something. owed counts that across claims, in tenths of a mail, so that it holds for claims of two mails
-- too. Each lane has two turns: one up to its share, with what the lanes after it may have left out, then one for
-- what is left.
--
-- A lane looks for leases past their time from its due_floor on, because there was none before. One can have come
-- there since: from a statement that took more than a second to commit, or when a clock was set back. So every ten
-- seconds a claim checks all leases, and sets no floor.
--
-- While a transaction holds an old snapshot, vacuum can remove neither settled leases nor old versions of an
-- updated row. The cost of a claim must not grow with them.
--
-- The scan of tokens must walk tokens_lane_txid_id_idx with its bounds as index conditions, whatever the planner
-- believes about a table that was not analysed yet: hence the settings. One plan for all claims saves half of the
-- time of a small one.
CREATE FUNCTION mailroom.claim(p_worker text, p_tokens integer, p_lease_tokens integer, p_lease_ms integer,
                               p_only_new boolean DEFAULT false)
RETURNS TABLE (lease bigint, key uuid, generation integer, lane text, tokens bigint[], actions text[],
               emails text[], logins text[], secrets bytea[], codes text[], locales text[], data jsonb[],
               expires_in_s integer[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    max_skipped CONSTANT integer := 1000;
    few         CONSTANT integer := 50;
    sweep_every CONSTANT interval := '10 seconds';
    late_commit CONSTANT interval := '1 second';
    idle_for    CONSTANT interval := '1 second';
    longest_import CONSTANT interval := '1 day';
    suppressing CONSTANT boolean := EXISTS (SELECT FROM mailroom.suppressions);
    job        public.jobs;
    began      timestamptz;
    sweeps     boolean;
    cursors    mailroom.cursors[];  -- of urgent, normal, bulk
    cursor     mailroom.cursors;
    n          integer;             -- the lane
    first_turn boolean;
    labels     text[] := '{urgent,normal,bulk}';  -- what the worker takes them for
    idle       boolean[];           -- the lane has nothing
    ended      boolean[];           -- it has nothing more, or was left early
    leased     boolean[] := '{f,f,f}';  -- no lease of the lane is left that is due
    handed     integer[] := '{0,0,0}';
    skipped    integer[] := '{0,0,0}';
    shares     integer[] := '{0,0,0}';
    claimed    integer := 0;
    room       integer;
    due        mailroom.leases;
    next_floor timestamptz;
    span       record;
    after_txid xid8;
    after_id   bigint;
    part       mailroom.message[];
    messages   mailroom.message[];
    ready      mailroom.message[];  -- not in a lease yet
    kept_2     mailroom.message[] := '{}';  -- the ready ones of normal and bulk, between their two turns
    kept_3     mailroom.message[] := '{}';
    unsettled  bigint[];
    waited_since  timestamptz;
    renewed_since timestamptz;
    lowest     bigint;
    highest    bigint;
    alone      boolean;
    doubtful   boolean;
    now        timestamptz;
    soon       timestamptz;
    suppressed text[] := '{}';
    doubts     bigint[];
    passed     bigint[];
    final      mailroom.message;
    wanted     integer;
    up_to_date boolean;
    fresh      pg_snapshot;
BEGIN
    IF p_tokens < 1 OR p_lease_tokens < 1 OR p_lease_ms < 1 THEN
        RAISE EXCEPTION 'mailroom: a claim needs at least one token, for at least one millisecond'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO job FROM public.jobs j FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'mailroom: the table jobs has lost its row, which is the queue'
            USING ERRCODE = 'no_data_found', HINT = 'Restore the row from a backup.';
    END IF;
    IF job.paused_at IS NOT NULL THEN
        RETURN;
    END IF;
    IF job.system_identifier <> (pg_control_system()).system_identifier THEN
        PERFORM mailroom.restart_cursor(job.moved_at);
        job.swept_at := '-infinity';
    END IF;
    cursors := ARRAY(SELECT c FROM mailroom.cursors c ORDER BY c.lane);
    IF cardinality(cursors) < 3 THEN
        RAISE EXCEPTION 'mailroom: the table cursors has lost a row, which is the cursor of a lane'
            USING ERRCODE = 'no_data_found', HINT = 'Restore the row from a backup.';
    END IF;

    began := clock_timestamp();
    sweeps := NOT p_only_new AND job.swept_at NOT BETWEEN began - sweep_every AND began;
    -- A lane that has nothing has no turn, and keeps no share. The snapshot is older than the look at the lane, so
    -- that no token is behind the one and was not seen by the other.
    fresh := mailroom.with_own_running(pg_current_snapshot());
    idle := ARRAY(
        SELECT c.last_txid = '0'
           AND NOT EXISTS (SELECT FROM public.tokens t
                           WHERE t.lane = c.lane AND t.txid >= pg_snapshot_xmin(c.low))
           AND (p_only_new
                OR NOT EXISTS (SELECT FROM mailroom.leases l
                               WHERE l.lane = c.lane AND l.due_at <= began
                                 AND l.due_at >= CASE WHEN sweeps THEN '-infinity' ELSE c.due_floor END))
        FROM unnest(cursors) c ORDER BY c.lane);
    ended := idle;
    FOR n IN 1..3 LOOP
        IF NOT idle[n] THEN
            shares[n] := greatest((cursors[n].owed + p_tokens) / 10, 0);
        END IF;
    END LOOP;

    FOR turn IN 1..6 LOOP
        first_turn := turn <= 3;
        n := CASE WHEN first_turn THEN turn ELSE turn - 3 END;
        CONTINUE WHEN idle[n];
        cursor := cursors[n];
        ready := CASE turn WHEN 5 THEN kept_2 WHEN 6 THEN kept_3 ELSE '{}' END;
        room := p_tokens - claimed;
        IF first_turn THEN
            room := room - CASE n WHEN 1 THEN shares[2] + shares[3] WHEN 2 THEN shares[3] ELSE 0 END;
            IF sweeps THEN
                cursor.due_floor := '-infinity';
            END IF;
            -- A worker whose urgent mails never end must not hold back what the lane is owed.
            IF n > 1 AND NOT ended[1] OR n > 2 AND NOT ended[2] THEN
                room := least(room, shares[n]);
                labels[n] := 'urgent';
            END IF;
        END IF;
        lane := labels[n];
        up_to_date := false;

        IF room > 0 AND NOT (p_only_new OR leased[n] OR ended[n]) THEN
            leased[n] := true;
            next_floor := CASE WHEN sweeps THEN '-infinity' ELSE began - late_commit END;
            FOR due IN
                SELECT * FROM mailroom.leases l
                WHERE l.lane = cursor.lane AND l.due_at >= cursor.due_floor AND l.due_at <= began
                ORDER BY l.due_at FOR NO KEY UPDATE SKIP LOCKED
            LOOP
                IF room <= 0 OR skipped[n] >= max_skipped THEN
                    next_floor := least(next_floor, due.due_at);
                    leased[n] := false;
                    EXIT;
                END IF;
                PERFORM mailroom.settle_known(due.tokens, due.generation, due.worker);
                -- A sent token is settled, even if the worker that sent it had lost the lease by then.
                unsettled := ARRAY(
                    SELECT p.id FROM unnest(due.tokens) WITH ORDINALITY AS p (id, n)
                    LEFT JOIN public.tokens t ON t.id = p.id
                    WHERE NOT EXISTS (SELECT FROM mailroom.deliveries d
                                      WHERE d.token = p.id AND d.outcome = 'sent'
                                        AND mailroom.is_of(d.fingerprint, t.secret)
                                        AND NOT mailroom.unrendered(d.token, d.id))
                    ORDER BY p.n);
                SELECT array_agg(ROW(t.id, t.action, t.email, coalesce(t.login, ''), t.secret, t.code,
                                     coalesce(t.locale, ''), t.data,
                                     mailroom.life_s(coalesce(t.send_at, t.created_at), t.expires_at, k.lifetime),
                                     t.txid, t.account,
                                     k.action IS NULL OR coalesce(t.send_at > clock_timestamp(), false)
                                     OR t.expires_at <= clock_timestamp() + interval '2 seconds'
                                     OR k.limit_mails IS NOT NULL OR k.paused_at IS NOT NULL
                                     OR EXISTS (SELECT FROM public.tokens o
                                                WHERE o.account = t.account AND o.id > t.id)
                                     OR t.account IS NULL AND EXISTS (
                                         SELECT FROM public.tokens o
                                         WHERE lower(o.email) = lower(t.email) AND o.action = t.action
                                           AND o.id > t.id))::mailroom.message
                             ORDER BY p.n)
                INTO messages
                FROM unnest(unsettled) WITH ORDINALITY AS p (id, n)
                JOIN public.tokens t ON t.id = p.id
                LEFT JOIN mailroom.actions k ON k.action = t.action
                LEFT JOIN public.accounts a ON a.id = t.account
                WHERE (k.action IS NULL OR mailroom.fits(t.account, a.status, k.account_status))
                  AND t.consumed_at IS NULL AND (t.expires_at > clock_timestamp() OR k.renews);
                PERFORM mailroom.record_skipped(
                    ARRAY(SELECT unnest(unsettled) EXCEPT ALL SELECT m.token FROM unnest(messages) m),
                    due.generation + 1, p_worker);
                IF suppressing THEN
                    suppressed := mailroom.suppressed_among(ARRAY(SELECT m.email FROM unnest(messages) m));
                END IF;
                doubts := ARRAY(SELECT m.token FROM unnest(messages) m
                                WHERE m.doubtful OR m.email = ANY (suppressed));
                IF cardinality(doubts) > 0 THEN
                    passed := mailroom.screen(due.lane, doubts, due.generation + 1, p_worker, '-infinity');
                    messages := nullif(ARRAY(SELECT m FROM unnest(messages) m
                                             WHERE m.token <> ALL (doubts) OR m.token = ANY (passed)), '{}');
                END IF;
                skipped[n] := skipped[n] + cardinality(due.tokens) - coalesce(cardinality(messages), 0);
                IF messages IS NULL THEN
                    DELETE FROM mailroom.leases l WHERE l.id = due.id;
                    CONTINUE;
                END IF;
                UPDATE mailroom.leases l
                SET key = gen_random_uuid(), generation = l.generation + 1, worker = p_worker, tokens = f.tokens,
                    due_at = clock_timestamp() + p_lease_ms * interval '1 millisecond'
                FROM mailroom.fields_of(messages) f
                WHERE l.id = due.id
                RETURNING l.id, l.key, l.generation, f.*
                INTO lease, key, generation, tokens, actions, emails, logins, secrets, codes, locales, data, expires_in_s;
                RETURN NEXT;
                room := room - cardinality(messages);
                handed[n] := handed[n] + cardinality(messages);
                claimed := claimed + cardinality(messages);
            END LOOP;
            cursor.due_floor := next_floor;
        END IF;

        LOOP
            ended[n] := ended[n] OR skipped[n] >= max_skipped;
            IF cardinality(ready) > 0
               AND (cardinality(ready) = p_lease_tokens OR ended[n]
                    OR room <= 0 AND NOT (first_turn AND n > 1)) THEN
                SELECT f.* INTO tokens, actions, emails, logins, secrets, codes, locales, data, expires_in_s
                FROM mailroom.fields_of(ready) f;
                generation := 1;
                INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)
                VALUES (cursor.lane, tokens, p_worker, 1,
                        clock_timestamp() + p_lease_ms * interval '1 millisecond')
                RETURNING id, leases.key INTO lease, key;
                RETURN NEXT;
                ready := '{}';
            END IF;
            EXIT WHEN room <= 0 OR ended[n];
            messages := '{}';
            waited_since := cursor.low_at;
            lowest := NULL;
            highest := NULL;
            doubtful := false;
            -- Read once, since the clock costs time. screen reads it again, so soon is a second more than it needs.
            now := clock_timestamp();
            soon := now + interval '3 seconds';
            wanted := least(p_lease_tokens - cardinality(ready), room, max_skipped - skipped[n]);
            <<fill>>
            LOOP
                IF cursor.low::text = cursor.high::text THEN
                    ended[n] := up_to_date;
                    EXIT fill WHEN up_to_date;
                    cursor.high_at := clock_timestamp();
                    cursor.high := mailroom.with_own_running(pg_current_snapshot());
                    up_to_date := true;
                END IF;
                -- An import may take longer than its tokens live. Those from before the queue are old.
                renewed_since := CASE WHEN pg_snapshot_xmax(cursor.low) = '1' THEN 'infinity'
                                      ELSE cursor.low_at - longest_import END;
                -- Transactions that low saw running and high saw ended, then those that began since.
                FOR span IN
                    SELECT x AS first, x AS last FROM pg_snapshot_xip(cursor.low) x
                    WHERE x >= cursor.last_txid AND pg_visible_in_snapshot(x, cursor.high)
                    UNION ALL
                    SELECT pg_snapshot_xmax(cursor.low), pg_snapshot_xmax(cursor.high)
                LOOP
                    -- The walk of the index begins behind the position, or at the span if that is later. With both
                    -- bounds as conditions it would begin at the lesser one, which in a fresh window is the lane's
                    -- first token.
                    IF cursor.last_txid >= span.first THEN
                        after_txid := cursor.last_txid;
                        after_id := cursor.last_seq;
                    ELSE
                        after_txid := span.first;
                        after_id := -9223372036854775808;
                    END IF;
                    SELECT array_agg(s.message), least(lowest, min(s.account)), greatest(highest, max(s.account)),
                           doubtful OR coalesce(bool_or((s.message).doubtful OR s.account IS NULL), false)
                    INTO part, lowest, highest, doubtful
                    FROM (
                        SELECT ROW(t.id, t.action, t.email, coalesce(t.login, ''), t.secret, t.code,
                                   coalesce(t.locale, ''), t.data,
                                   mailroom.life_s(coalesce(t.send_at, t.created_at), t.expires_at, k.lifetime),
                                   t.txid, t.account,
                                   k.action IS NULL OR coalesce(t.send_at > now, false) OR t.expires_at <= soon
                                   OR k.limit_mails IS NOT NULL OR k.paused_at IS NOT NULL
                                   OR NOT mailroom.fits(t.account, a.status, k.account_status)
                               )::mailroom.message AS message, t.account
                        FROM public.tokens t
                        LEFT JOIN mailroom.actions k ON k.action = t.action
                        LEFT JOIN public.accounts a ON a.id = t.account
                        WHERE t.lane = cursor.lane
                          AND (t.txid, t.id) > (after_txid, after_id) AND t.txid <= span.last
                          AND pg_visible_in_snapshot(t.txid, cursor.high)
                          AND t.consumed_at IS NULL
                          AND (t.expires_at > cursor.low_at OR k.renews AND t.created_at > renewed_since)
                        ORDER BY t.txid, t.id
                        LIMIT wanted - cardinality(messages)) s;
                    messages := CASE WHEN messages = '{}' THEN coalesce(part, '{}') ELSE messages || part END;
                    EXIT WHEN cardinality(messages) = wanted;
                END LOOP;
                IF cardinality(messages) = wanted THEN
                    final := messages[wanted];
                    cursor.last_txid := final.txid;
                    cursor.last_seq := final.token;
                    EXIT fill;
                END IF;
                cursor.low := cursor.high;
                cursor.low_at := cursor.high_at;
                cursor.last_txid := '0';
                cursor.last_seq := 0;
            END LOOP;

            -- Accounts that signed up one after the other have neighbouring ids. One walk of their tokens shows
            -- whether each has only one, for less than half of what a look at each would cost.
            alone := false;
            IF cardinality(messages) > few AND highest::numeric - lowest < 2 * cardinality(messages) THEN
                alone := (SELECT count(*) < 4 * wanted AND count(*) = count(DISTINCT o.account)
                          FROM (SELECT x.account FROM public.tokens x WHERE x.account BETWEEN lowest AND highest
                                ORDER BY x.account LIMIT 4 * wanted) o);
            END IF;
            IF suppressing THEN
                suppressed := mailroom.suppressed_among(ARRAY(SELECT m.email FROM unnest(messages) m));
            END IF;
            doubts := CASE WHEN doubtful OR suppressed <> '{}' OR NOT alone THEN ARRAY(
                SELECT m.token FROM unnest(messages) m
                WHERE m.doubtful OR m.email = ANY (suppressed)
                   OR m.account IS NOT NULL AND NOT alone
                      AND EXISTS (SELECT FROM public.tokens o WHERE o.account = m.account AND o.id > m.token)
                   OR m.account IS NULL
                      AND EXISTS (SELECT FROM public.tokens o
                                  WHERE lower(o.email) = lower(m.email)
                                    AND o.action = m.action::public.token_action AND o.id > m.token)) END;
            IF cardinality(doubts) > 0 THEN
                passed := mailroom.screen(cursor.lane, doubts, 0, p_worker, waited_since);
                skipped[n] := skipped[n] + cardinality(doubts) - cardinality(passed);
                messages := ARRAY(SELECT m FROM unnest(messages) m
                                  WHERE m.token <> ALL (doubts) OR m.token = ANY (passed));
            END IF;
            ready := CASE WHEN ready = '{}' THEN messages ELSE ready || messages END;
            room := room - cardinality(messages);
            handed[n] := handed[n] + cardinality(messages);
            claimed := claimed + cardinality(messages);
        END LOOP;

        IF turn = 2 THEN
            kept_2 := ready;
        ELSIF turn = 3 THEN
            kept_3 := ready;
        END IF;
        cursors[n] := cursor;
    END LOOP;

    -- A lane that stays idle need not move with each claim.
    FOR n IN 1..3 LOOP
        cursor := cursors[n];
        IF NOT idle[n] THEN
            cursor.owed := CASE WHEN ended[n] OR labels[n] <> 'urgent' OR n = 1 THEN 0
                                ELSE cursor.owed + claimed - 10 * handed[n] END;
        ELSIF sweeps OR cursor.due_floor = '-infinity'
              OR cursor.low_at NOT BETWEEN began - idle_for AND began THEN
            cursor.low := fresh;
            cursor.high := fresh;
            cursor.low_at := began;
            cursor.high_at := began;
            cursor.owed := 0;
            cursor.due_floor := CASE WHEN p_only_new THEN cursor.due_floor WHEN sweeps THEN '-infinity'
                                     ELSE began - late_commit END;
        ELSE
            CONTINUE;
        END IF;
        UPDATE mailroom.cursors c
        SET low = cursor.low, high = cursor.high, low_at = cursor.low_at, high_at = cursor.high_at,
            last_txid = cursor.last_txid, last_seq = cursor.last_seq, due_floor = cursor.due_floor,
            owed = cursor.owed
        WHERE c.lane = cursor.lane;
    END LOOP;
    UPDATE public.jobs j
    SET moved_at = clock_timestamp(), swept_at = CASE WHEN sweeps THEN began ELSE job.swept_at END
    WHERE j.job_type = job.job_type;
END $$;
COMMENT ON FUNCTION mailroom.claim IS
    'Hands out up to p_tokens messages in leases of at most p_lease_tokens, due after p_lease_ms, one row a lease, '
    'the fields of its messages as arrays: urgent ones first, '
    'then normal, then bulk, each of which keeps a tenth. Of a lane, leases past '
    'their time come first, whole, without the tokens that were sent; then new tokens. With p_only_new it hands '
    'out new tokens only. Fewer messages than requested mean that nothing more is pending, unless next_due '
    'returns 0: a lane is left early after 1,000 tokens that may not be mailed any more. A paused queue hands out '
    'nothing. lane is urgent for a lease of a lower lane''s tenth. expires_in_s has NULL for the action''s lifetime.';

CREATE FUNCTION mailroom.next_due() RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT CASE WHEN due.in_window OR due.at <= clock_timestamp() THEN 0
                ELSE extract(epoch FROM due.at - clock_timestamp()) END::double precision
    FROM public.jobs j, LATERAL (
        SELECT bool_or(c.last_txid <> '0') AS in_window,
               min(least((SELECT l.due_at FROM mailroom.leases l
                          WHERE l.lane = c.lane AND l.due_at >= c.due_floor ORDER BY l.due_at LIMIT 1),
                         CASE WHEN c.due_floor > '-infinity' THEN j.swept_at + interval '10 seconds' END)) AS at
        FROM mailroom.cursors c) due
    WHERE j.paused_at IS NULL
$$;
COMMENT ON FUNCTION mailroom.next_due IS
    'Returns the seconds until a claim is due: 0 if the last one stopped early or a lease is due, else until '
    'the first lease is due or the next claim must check all leases. NULL if there is nothing to wait for, or '
    'the queue is paused.';
