-- Hand out up to p_tokens messages in leases of at most p_lease_tokens, due after p_lease_ms.
-- Leases past their time come first, whole; then what the window yields. Fewer messages than
-- asked for means that nothing more is pending.
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
    job        public.jobs;
    due        mailroom.leases;
    span       record;
    part       mailroom.message[];
    messages   mailroom.message[];
    overdue    bigint[];
    final      mailroom.message;
    claimed    integer := 0;
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
    END IF;

    FOR due IN
        SELECT * FROM mailroom.leases l
        WHERE l.job = job.job_type AND l.due_at <= clock_timestamp()
        ORDER BY l.due_at FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        EXIT WHEN claimed >= p_tokens;
        messages := mailroom.eligible(due.tokens);
        PERFORM mailroom.drop_tokens(
            ARRAY(SELECT unnest(due.tokens) EXCEPT ALL SELECT m.token FROM unnest(messages) m),
            due.generation + 1, p_worker);
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
                SELECT array_agg(s.message) INTO part FROM (
                    SELECT ROW(t.id, t.action, a.email, a.login, t.secret, t.code, t.txid,
                               t.expires_at <= clock_timestamp())::mailroom.message AS message
                    FROM public.tokens t
                    JOIN public.accounts a ON a.id = t.account
                    JOIN mailroom.actions k ON k.action = t.action AND k.account_status = a.status
                    WHERE t.txid >= span.first AND t.txid <= span.last
                      AND (t.txid, t.id) > (job.last_txid, job.last_seq)
                      AND pg_visible_in_snapshot(t.txid, job.high)
                      AND t.consumed_at IS NULL AND t.expires_at > job.moved_at
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
            job.last_txid := '0';
            job.last_seq := 0;
        END LOOP;

        EXIT WHEN cardinality(messages) = 0;
        -- What expired while it waited is passed by, and written down.
        overdue := ARRAY(SELECT m.token FROM unnest(messages) m WHERE m.overdue);
        IF cardinality(overdue) > 0 THEN
            PERFORM mailroom.drop_tokens(overdue, 0, p_worker);
            messages := ARRAY(SELECT m FROM unnest(messages) m WHERE NOT m.overdue);
            CONTINUE WHEN cardinality(messages) = 0;
        END IF;
        INSERT INTO mailroom.leases (job, tokens, worker, generation, due_at)
        VALUES (job.job_type, ARRAY(SELECT m.token FROM unnest(messages) m), p_worker, 1,
                clock_timestamp() + p_lease_ms * interval '1 millisecond')
        RETURNING id INTO lease_id;
        RETURN QUERY SELECT lease_id, 1, m.token, m.action, m.email, m.login, m.secret, m.code
                     FROM unnest(messages) m;
        claimed := claimed + cardinality(messages);
    END LOOP;

    UPDATE public.jobs j
    SET low = job.low, high = job.high, last_txid = job.last_txid, last_seq = job.last_seq,
        moved_at = clock_timestamp()
    WHERE j.job_type = job.job_type;
END $$;

DROP FUNCTION mailroom.unsent(bigint[]);

-- Seconds until the first lease of the queue is due (0 if one is), NULL when there is none.
CREATE OR REPLACE FUNCTION mailroom.next_due(p_queue text) RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT min(greatest(extract(epoch FROM l.due_at - clock_timestamp()), 0))::double precision
    FROM mailroom.leases l JOIN public.jobs j ON j.job_type = l.job
    WHERE j.job_type::text = p_queue
$$;

ALTER TABLE public.jobs DROP COLUMN high_at, DROP COLUMN low_at;

GRANT EXECUTE ON FUNCTION mailroom.issue_activation(), mailroom.after_consumption(), mailroom.ring() TO PUBLIC;
