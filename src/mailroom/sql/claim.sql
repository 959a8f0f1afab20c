-- Claiming: the next messages, in leases.

-- One recipient of one mail. txid says where the cursor stands after it; overdue, that it expired while it
-- waited.
CREATE TYPE mailroom.message AS (
    token   bigint,
    action  text,
    email   text,
    login   text,
    secret  bytea,
    code    text,
    txid    xid8,
    overdue boolean
);

-- It looks for leases past their time from due_floor on, because there was none before. One can have come there
-- since: from a statement that took more than a second to commit, or when a clock was set back. So every ten
-- seconds a claim checks all leases, and sets no floor.
--
-- While a transaction holds an old snapshot, vacuum can remove neither settled leases nor old versions of an
-- updated row. The cost of a claim must not grow with them.
--
-- The scan of tokens must walk tokens_txid_id_idx with its bounds as index conditions, whatever the planner
-- believes about a table that was not analysed yet: hence the settings.
CREATE FUNCTION mailroom.claim(p_worker text, p_tokens integer, p_lease_tokens integer, p_lease_ms integer,
                               p_only_new boolean DEFAULT false)
RETURNS TABLE (lease bigint, key uuid, generation integer, token bigint, action text, email text,
               login text, secret bytea, code text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    max_skipped CONSTANT integer := 1000;
    sweep_every CONSTANT interval := '10 seconds';
    late_commit CONSTANT interval := '1 second';
    job        public.jobs;
    due        mailroom.leases;
    began      timestamptz;
    next_floor timestamptz;
    span       record;
    after_txid xid8;
    after_id   bigint;
    part       mailroom.message[];
    messages   mailroom.message[];
    unsettled  bigint[];
    overdue    bigint[];
    final      mailroom.message;
    claimed    integer := 0;
    skipped    integer := 0;
    wanted     integer;
    lease_id   bigint;
    lease_key  uuid;
    up_to_date boolean := false;
BEGIN
    IF p_tokens < 1 OR p_lease_tokens < 1 OR p_lease_ms < 1 THEN
        RAISE EXCEPTION 'mailroom: a claim needs at least one token, for at least one millisecond'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO job FROM public.jobs j FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'mailroom: the table jobs has lost its row, which is the queue''s cursor'
            USING ERRCODE = 'no_data_found', HINT = 'Restore the row from a backup.';
    END IF;
    IF job.paused_at IS NOT NULL THEN
        RETURN;
    END IF;
    IF job.system_identifier <> (pg_control_system()).system_identifier THEN
        job := mailroom.restart_cursor(job);
    END IF;

    began := clock_timestamp();
    next_floor := began - late_commit;
    IF p_only_new THEN
        next_floor := job.due_floor;
    ELSIF job.swept_at NOT BETWEEN began - sweep_every AND began THEN
        job.swept_at := began;
        job.due_floor := '-infinity';
        next_floor := '-infinity';
    END IF;
    FOR due IN
        SELECT * FROM mailroom.leases l
        WHERE NOT p_only_new AND l.due_at >= job.due_floor AND l.due_at <= began
        ORDER BY l.due_at FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        IF claimed >= p_tokens OR skipped >= max_skipped THEN
            next_floor := least(next_floor, due.due_at);
            EXIT;
        END IF;
        -- A sent token is settled, even if the worker that sent it had lost the lease by then.
        unsettled := ARRAY(
            SELECT p.id FROM unnest(due.tokens) WITH ORDINALITY AS p (id, n)
            LEFT JOIN public.tokens t ON t.id = p.id
            WHERE NOT EXISTS (SELECT FROM mailroom.deliveries d
                              WHERE d.token = p.id AND d.outcome = 'sent'
                                AND mailroom.is_of(d.fingerprint, t.secret))
            ORDER BY p.n);
        SELECT array_agg(ROW(t.id, t.action, t.email, coalesce(t.login, ''), t.secret, t.code, t.txid, false)::mailroom.message
                         ORDER BY p.n)
        INTO messages
        FROM unnest(unsettled) WITH ORDINALITY AS p (id, n)
        JOIN public.tokens t ON t.id = p.id
        JOIN mailroom.actions k ON k.action = t.action
        LEFT JOIN public.accounts a ON a.id = t.account
        WHERE mailroom.fits(t.account, a.status, k.account_status)
          AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp();
        PERFORM mailroom.record_skipped(
            ARRAY(SELECT unnest(unsettled) EXCEPT ALL SELECT m.token FROM unnest(messages) m),
            due.generation + 1, p_worker);
        skipped := skipped + cardinality(due.tokens) - coalesce(cardinality(messages), 0);
        IF messages IS NULL THEN
            DELETE FROM mailroom.leases l WHERE l.id = due.id;
            CONTINUE;
        END IF;
        UPDATE mailroom.leases l
        SET key = gen_random_uuid(), generation = due.generation + 1, worker = p_worker,
            tokens = ARRAY(SELECT m.token FROM unnest(messages) m),
            due_at = clock_timestamp() + p_lease_ms * interval '1 millisecond'
        WHERE l.id = due.id RETURNING l.key INTO lease_key;
        RETURN QUERY SELECT due.id, lease_key, due.generation + 1, m.token, m.action, m.email, m.login,
                            m.secret, m.code FROM unnest(messages) m;
        claimed := claimed + cardinality(messages);
    END LOOP;

    WHILE claimed < p_tokens LOOP
        messages := '{}';
        wanted := least(p_lease_tokens, p_tokens - claimed);
        <<fill>>
        LOOP
            IF job.low::text = job.high::text THEN
                EXIT fill WHEN up_to_date;
                job.high_at := clock_timestamp();
                job.high := mailroom.with_own_running(pg_current_snapshot());
                up_to_date := true;
            END IF;
            -- Transactions that low saw running and high saw ended, then those that began since.
            FOR span IN
                SELECT x AS first, x AS last FROM pg_snapshot_xip(job.low) x
                WHERE x >= job.last_txid AND pg_visible_in_snapshot(x, job.high)
                UNION ALL
                SELECT pg_snapshot_xmax(job.low), pg_snapshot_xmax(job.high)
            LOOP
                -- The walk of the index begins behind the position, or at the span if that is later. With both
                -- bounds as conditions it would begin at the lesser one, which in a fresh window is the table's
                -- first token.
                IF job.last_txid >= span.first THEN
                    after_txid := job.last_txid;
                    after_id := job.last_seq;
                ELSE
                    after_txid := span.first;
                    after_id := -9223372036854775808;
                END IF;
                SELECT array_agg(s.message) INTO part FROM (
                    SELECT ROW(t.id, t.action, t.email, coalesce(t.login, ''), t.secret, t.code, t.txid,
                               t.expires_at <= clock_timestamp())::mailroom.message AS message
                    FROM public.tokens t
                    JOIN mailroom.actions k ON k.action = t.action
                    LEFT JOIN public.accounts a ON a.id = t.account
                    WHERE (t.txid, t.id) > (after_txid, after_id) AND t.txid <= span.last
                      AND pg_visible_in_snapshot(t.txid, job.high)
                      AND t.consumed_at IS NULL AND t.expires_at > job.low_at
                      AND mailroom.fits(t.account, a.status, k.account_status)
                    ORDER BY t.txid, t.id
                    LIMIT wanted - cardinality(messages)) s;
                messages := messages || part;
                EXIT WHEN cardinality(messages) = wanted;
            END LOOP;
            IF cardinality(messages) = wanted THEN
                final := messages[wanted];
                job.last_txid := final.txid;
                job.last_seq := final.token;
                EXIT fill;
            END IF;
            job.low := job.high;
            job.low_at := job.high_at;
            job.last_txid := '0';
            job.last_seq := 0;
        END LOOP;

        EXIT WHEN cardinality(messages) = 0;
        -- What expired while it waited is not handed out, but recorded.
        overdue := ARRAY(SELECT m.token FROM unnest(messages) m WHERE m.overdue);
        IF cardinality(overdue) > 0 THEN
            PERFORM mailroom.record_skipped(overdue, 0, p_worker);
            skipped := skipped + cardinality(overdue);
            messages := ARRAY(SELECT m FROM unnest(messages) m WHERE NOT m.overdue);
        END IF;
        IF cardinality(messages) > 0 THEN
            INSERT INTO mailroom.leases (tokens, worker, generation, due_at)
            VALUES (ARRAY(SELECT m.token FROM unnest(messages) m), p_worker, 1,
                    clock_timestamp() + p_lease_ms * interval '1 millisecond')
            RETURNING id, key INTO lease_id, lease_key;
            RETURN QUERY SELECT lease_id, lease_key, 1, m.token, m.action, m.email, m.login, m.secret, m.code
                         FROM unnest(messages) m;
            claimed := claimed + cardinality(messages);
        END IF;
        -- The caller waits for the answer. The position says that the window was not walked to its end.
        EXIT WHEN skipped >= max_skipped;
    END LOOP;

    UPDATE public.jobs j
    SET low = job.low, high = job.high, low_at = job.low_at, high_at = job.high_at,
        last_txid = job.last_txid, last_seq = job.last_seq, moved_at = clock_timestamp(),
        due_floor = next_floor, swept_at = job.swept_at
    WHERE j.job_type = job.job_type;
END $$;
COMMENT ON FUNCTION mailroom.claim IS
    'Hands out up to p_tokens messages in leases of at most p_lease_tokens, due after p_lease_ms. Leases past '
    'their time come first, whole, without the tokens that were sent; then new tokens. With p_only_new it hands '
    'out new tokens only. Fewer messages than requested mean that nothing more is pending, unless next_due '
    'returns 0: a claim stops early after 1,000 tokens that may not be mailed any more. A paused queue hands out '
    'nothing.';

CREATE FUNCTION mailroom.next_due() RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT CASE WHEN j.last_txid <> '0' OR due.at <= clock_timestamp() THEN 0
                ELSE extract(epoch FROM due.at - clock_timestamp()) END::double precision
    FROM public.jobs j, LATERAL (SELECT least(
        (SELECT l.due_at FROM mailroom.leases l WHERE l.due_at >= j.due_floor ORDER BY l.due_at LIMIT 1),
        CASE WHEN j.due_floor > '-infinity' THEN j.swept_at + interval '10 seconds' END) AS at) due
    WHERE j.paused_at IS NULL
$$;
COMMENT ON FUNCTION mailroom.next_due IS
    'Returns the seconds until a claim is due: 0 if the last one stopped early or a lease is due, else until '
    'the first lease is due or the next claim must check all leases. NULL if there is nothing to wait for, or '
    'the queue is paused.';
