-- Seconds until a claim is due: 0 while the last one did not come to the window's end, or when a lease is
-- due; else until the first lease is. NULL when there is none, and while the queue is paused.
CREATE OR REPLACE FUNCTION mailroom.next_due(p_queue text) RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN j.last_txid <> '0' THEN 0 ELSE (
               SELECT greatest(extract(epoch FROM l.due_at - clock_timestamp()), 0)
               FROM mailroom.leases l WHERE l.job = j.job_type ORDER BY l.due_at LIMIT 1) END::double precision
    FROM public.jobs j
    WHERE j.job_type::text = p_queue AND j.paused_at IS NULL
$$;

-- Hand out up to p_tokens messages in leases of at most p_lease_tokens, due after p_lease_ms.
-- Leases past their time come first, whole, but for what was sent; then what the window yields. Fewer
-- messages than asked for means that nothing more is pending, unless next_due is 0: a claim that came
-- across a thousand tokens which may not be mailed any more stops there, for its answer is waited for.
--
-- The scan must walk tokens_txid_id_idx with its bounds as index conditions, whatever the planner
-- believes about a table it has not analysed yet: hence the settings.
CREATE OR REPLACE FUNCTION mailroom.claim(p_queue text, p_worker text, p_tokens integer, p_lease_tokens integer,
                               p_lease_ms integer)
RETURNS TABLE (lease bigint, generation integer, token bigint, action text, email text, login text,
               secret bytea, code text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    most_dropped CONSTANT integer := 1000;
    job        public.jobs;
    due        mailroom.leases;
    span       record;
    after_txid xid8;
    after_id   bigint;
    part       mailroom.message[];
    messages   mailroom.message[];
    unsettled  bigint[];
    overdue    bigint[];
    final      mailroom.message;
    claimed    integer := 0;
    dropped    integer := 0;
    wanted     integer;
    lease_id   bigint;
    up_to_date boolean := false;
BEGIN
    IF p_tokens < 1 OR p_lease_tokens < 1 OR p_lease_ms < 1 THEN
        RAISE EXCEPTION 'mailroom: a claim needs at least one token, for at least one millisecond'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO job FROM public.jobs j WHERE j.job_type::text = p_queue FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'mailroom: unknown queue "%"', p_queue
            USING ERRCODE = 'undefined_object', HINT = 'The queues are the rows of the table jobs.';
    END IF;
    IF job.paused_at IS NOT NULL THEN
        RETURN;
    END IF;
    IF job.system_identifier <> (pg_control_system()).system_identifier THEN
        job := mailroom.adopt(job);
        job.low_at := clock_timestamp();
        job.high_at := job.low_at;
    END IF;

    FOR due IN
        SELECT * FROM mailroom.leases l
        WHERE l.job = job.job_type AND l.due_at <= clock_timestamp()
        ORDER BY l.due_at FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        EXIT WHEN claimed >= p_tokens OR dropped >= most_dropped;
        -- What was sent is settled, though its worker had lost the lease when it said so.
        unsettled := mailroom.unsent(due.tokens);
        messages := mailroom.eligible(unsettled);
        PERFORM mailroom.drop_tokens(
            ARRAY(SELECT unnest(unsettled) EXCEPT ALL SELECT m.token FROM unnest(messages) m),
            due.generation + 1, p_worker);
        dropped := dropped + cardinality(due.tokens) - coalesce(cardinality(messages), 0);
        IF messages IS NULL THEN
            DELETE FROM mailroom.leases l WHERE l.id = due.id;
            CONTINUE;
        END IF;
        UPDATE mailroom.leases l
        SET generation = due.generation + 1, worker = p_worker,
            tokens = ARRAY(SELECT m.token FROM unnest(messages) m),
            due_at = clock_timestamp() + p_lease_ms * interval '1 millisecond'
        WHERE l.id = due.id;
        RETURN QUERY SELECT due.id, due.generation + 1, m.token, m.action, m.email, m.login, m.secret, m.code
                     FROM unnest(messages) m;
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
                -- Where the walk of the index begins: behind the position, or at the span if that lies
                -- behind it. Both bounds in two conditions would begin at the lesser one, which in a fresh
                -- window is the beginning of time.
                IF job.last_txid >= span.first THEN
                    after_txid := job.last_txid;
                    after_id := job.last_seq;
                ELSE
                    after_txid := span.first;
                    after_id := -9223372036854775808;
                END IF;
                SELECT array_agg(s.message) INTO part FROM (
                    SELECT ROW(t.id, t.action, a.email, a.login, t.secret, t.code, t.txid,
                               t.expires_at <= clock_timestamp())::mailroom.message AS message
                    FROM public.tokens t
                    JOIN public.accounts a ON a.id = t.account
                    JOIN mailroom.actions k ON k.action = t.action AND k.account_status = a.status
                    WHERE (t.txid, t.id) > (after_txid, after_id) AND t.txid <= span.last
                      AND pg_visible_in_snapshot(t.txid, job.high)
                      AND t.consumed_at IS NULL AND t.expires_at > job.low_at
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
        -- What expired while it waited is passed by, and written down.
        overdue := ARRAY(SELECT m.token FROM unnest(messages) m WHERE m.overdue);
        IF cardinality(overdue) > 0 THEN
            PERFORM mailroom.drop_tokens(overdue, 0, p_worker);
            dropped := dropped + cardinality(overdue);
            messages := ARRAY(SELECT m FROM unnest(messages) m WHERE NOT m.overdue);
        END IF;
        IF cardinality(messages) > 0 THEN
            INSERT INTO mailroom.leases (job, tokens, worker, generation, due_at)
            VALUES (job.job_type, ARRAY(SELECT m.token FROM unnest(messages) m), p_worker, 1,
                    clock_timestamp() + p_lease_ms * interval '1 millisecond')
            RETURNING id INTO lease_id;
            RETURN QUERY SELECT lease_id, 1, m.token, m.action, m.email, m.login, m.secret, m.code
                         FROM unnest(messages) m;
            claimed := claimed + cardinality(messages);
        END IF;
        -- The window has been walked to its end, or the position says that it has not.
        EXIT WHEN dropped >= most_dropped;
    END LOOP;

    UPDATE public.jobs j
    SET low = job.low, high = job.high, low_at = job.low_at, high_at = job.high_at,
        last_txid = job.last_txid, last_seq = job.last_seq, moved_at = clock_timestamp()
    WHERE j.job_type = job.job_type;
END $$;

-- Charge recipients, and say how long to wait before the call, in seconds, and the rate at present. A wait
-- longer than p_longest_s, or than a lease's time, means: not now. Nothing is charged then; ask again.
CREATE OR REPLACE FUNCTION mailroom.reserve(p_queue text, p_recipients integer, p_ceiling double precision,
                                 p_longest_s double precision DEFAULT 'Infinity')
RETURNS TABLE (wait_s double precision, rate double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    -- As in the sender's own bucket: the burst in seconds, how long a throttle holds, and how much
    -- of the ceiling comes back a second after that.
    burst_s   CONSTANT double precision := 0.5;
    hold      CONSTANT interval := '60 seconds';
    faster    CONSTANT double precision := 0.01;
    longest_s CONSTANT double precision := 15;
    bucket    mailroom.rates;
    now       timestamptz;
    charge_s  double precision;
    needed_s  double precision;
BEGIN
    INSERT INTO mailroom.rates (job, rate)
    SELECT j.job_type, p_ceiling FROM public.jobs j WHERE j.job_type::text = p_queue
    ON CONFLICT DO NOTHING;
    SELECT r.* INTO bucket FROM mailroom.rates r WHERE r.job::text = p_queue FOR NO KEY UPDATE;
    now := clock_timestamp();
    IF now > bucket.slowed_at + hold THEN
        bucket.rate := bucket.rate + faster * p_ceiling
            * extract(epoch FROM now - greatest(bucket.changed_at, bucket.slowed_at + hold));
    END IF;
    bucket.rate := least(bucket.rate, p_ceiling);
    charge_s := p_recipients / bucket.rate;
    -- No charge is further ahead than the longest wait and itself. A clock that was set back, or a
    -- version that left its charges behind, could have put it there.
    bucket.free_at := greatest(now, least(bucket.free_at,
                                          now + (longest_s + 2 * charge_s) * interval '1 second'));
    needed_s := greatest(0, extract(epoch FROM bucket.free_at - now)::double precision
                            + charge_s - greatest(burst_s, charge_s));
    IF needed_s <= least(p_longest_s, longest_s) THEN
        bucket.free_at := bucket.free_at + charge_s * interval '1 second';
    END IF;
    UPDATE mailroom.rates r SET free_at = bucket.free_at, rate = bucket.rate, changed_at = now
    WHERE r.job = bucket.job;
    RETURN QUERY SELECT needed_s, bucket.rate;
END $$;

ALTER TABLE mailroom.leases ALTER COLUMN tokens SET STORAGE EXTENDED;
ALTER TABLE public.jobs DROP COLUMN due_floor, DROP COLUMN swept_at;
