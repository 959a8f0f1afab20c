-- The ledger: what became of every attempt, and what the people on call ask and do.
--
-- `mailroom run` settles a lease when the transport has answered, with an outcome for every token of
-- it. What is to be tried again stays in the lease, held by nobody, until it is due; then a claim
-- tests again who may still be mailed, and writes down who may not any more.

CREATE TABLE mailroom.deliveries (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token      bigint      NOT NULL,
    attempt    integer     NOT NULL,
    outcome    text        NOT NULL
        CHECK (outcome IN ('sent', 'retried', 'rejected', 'expired', 'skipped', 'unknown')),
    result     text        NOT NULL DEFAULT '',
    provider   text        NOT NULL DEFAULT '',
    message_id text        NOT NULL DEFAULT '',
    detail     text        NOT NULL DEFAULT '',
    worker     text        NOT NULL DEFAULT '',
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX deliveries_token_idx ON mailroom.deliveries (token, id);
CREATE INDEX deliveries_at_idx ON mailroom.deliveries (at);

COMMENT ON COLUMN mailroom.deliveries.outcome IS
    'sent, rejected (for good), expired or skipped (not sent, for the reason in detail), retried, unknown (the answer was lost; retried).';
COMMENT ON COLUMN mailroom.deliveries.result IS
    'The class of the transport''s answer: sent, rejected, transient, throttled, unknown, failed, paused.';

CREATE FUNCTION mailroom.refuse_update() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'mailroom: the ledger is insert only' USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;
CREATE TRIGGER deliveries_insert_only BEFORE UPDATE ON mailroom.deliveries
    FOR EACH STATEMENT EXECUTE FUNCTION mailroom.refuse_update();

ALTER TABLE public.jobs ADD COLUMN paused_at timestamptz, ADD COLUMN pause_reason text;

-- Why a token may not be mailed; NULL when it may.
CREATE FUNCTION mailroom.hindrance(p_token bigint) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN t.id IS NULL THEN 'deleted'
        WHEN t.consumed_at IS NOT NULL THEN 'consumed'
        WHEN t.expires_at <= clock_timestamp() AND EXISTS (
            SELECT FROM public.tokens s
            WHERE s.account = t.account AND s.action = t.action AND s.id <> t.id
              AND s.consumed_at BETWEEN t.expires_at - interval '1 second' AND t.expires_at + interval '1 second')
            THEN 'superseded'
        WHEN t.expires_at <= clock_timestamp() THEN 'expired'
        WHEN a.status = 'suspended' THEN 'suspended'
        WHEN k.account_status IS DISTINCT FROM a.status THEN 'ineligible'
    END
    FROM (SELECT p_token AS id) p
    LEFT JOIN public.tokens t ON t.id = p.id
    LEFT JOIN public.accounts a ON a.id = t.account
    LEFT JOIN mailroom.actions k ON k.action = t.action
$$;

-- Write down tokens that were to be mailed and may not be any more.
CREATE FUNCTION mailroom.drop_tokens(p_tokens bigint[], p_attempt integer, p_worker text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO mailroom.deliveries (token, attempt, outcome, detail, worker)
    SELECT x.id, p_attempt, CASE x.why WHEN 'expired' THEN 'expired' ELSE 'skipped' END, x.why, p_worker
    FROM (SELECT id, coalesce(mailroom.hindrance(id), 'ineligible') AS why FROM unnest(p_tokens) AS id) x
$$;

ALTER TYPE mailroom.message ADD ATTRIBUTE overdue boolean;

-- The tokens of the list that may still be mailed, in its order; NULL when none may.
CREATE OR REPLACE FUNCTION mailroom.eligible(p_tokens bigint[]) RETURNS mailroom.message[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN (
        SELECT array_agg(ROW(t.id, t.action, a.email, a.login, t.secret, t.code, t.txid, false)::mailroom.message
                         ORDER BY p.n)
        FROM unnest(p_tokens) WITH ORDINALITY AS p (id, n)
        JOIN public.tokens t ON t.id = p.id
        JOIN public.accounts a ON a.id = t.account
        JOIN mailroom.actions k ON k.action = t.action AND k.account_status = a.status
        WHERE t.consumed_at IS NULL AND t.expires_at > clock_timestamp());
END $$;

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


-- Settle a lease with the outcomes of an attempt. Sent and rejected tokens leave it; the others stay,
-- held by nobody and due after p_retry_ms, or at the first of their expiries if that comes before. A
-- token that failed p_retry_limit times without a stated reason is rejected.
--
-- The outcomes are written down whether or not the lease is still this generation's; settled says
-- whether it was. A token with an empty result was not tried, and leaves no row.
CREATE FUNCTION mailroom.record(p_lease bigint, p_generation integer, p_worker text, p_provider text,
                                p_tokens bigint[], p_results text[], p_message_ids text[], p_details text[],
                                p_retry_ms integer, p_retry_limit integer)
RETURNS TABLE (token bigint, outcome text, settled boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    outcomes text[];
    rest     bigint[];
    ours     boolean;
BEGIN
    SELECT array_agg(CASE
        WHEN u.result IN ('sent', 'rejected', 'unknown') THEN u.result
        WHEN u.result = 'failed' AND p_retry_limit <= 1 + (
            SELECT count(*) FROM mailroom.deliveries d WHERE d.token = u.id AND d.result = 'failed')
            THEN 'rejected'
        ELSE 'retried' END ORDER BY u.n)
    INTO outcomes FROM unnest(p_tokens, p_results) WITH ORDINALITY AS u (id, result, n);
    INSERT INTO mailroom.deliveries (token, attempt, outcome, result, provider, message_id, detail, worker)
    SELECT u.id, p_generation, u.outcome, u.result, p_provider, u.message_id, u.detail, p_worker
    FROM unnest(p_tokens, outcomes, p_results, p_message_ids, p_details) AS u (id, outcome, result, message_id, detail)
    WHERE u.result <> '';

    rest := ARRAY(SELECT u.id FROM unnest(p_tokens, outcomes) AS u (id, outcome)
                  WHERE u.outcome NOT IN ('sent', 'rejected'));
    IF cardinality(rest) > 0 THEN
        UPDATE mailroom.leases l
        SET tokens = rest, worker = '', due_at = least(
            clock_timestamp() + p_retry_ms * interval '1 millisecond',
            (SELECT min(t.expires_at) FROM public.tokens t WHERE t.id = ANY (rest)))
        WHERE l.id = p_lease AND l.generation = p_generation;
    ELSE
        DELETE FROM mailroom.leases l WHERE l.id = p_lease AND l.generation = p_generation;
    END IF;
    ours := FOUND;
    RETURN QUERY SELECT u.id, u.outcome, ours FROM unnest(p_tokens, outcomes) AS u (id, outcome);
END $$;

-- Stop handing out mail, and go on. Whoever has something in hand finishes it.
CREATE FUNCTION mailroom.pause(p_queue text, p_reason text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE public.jobs j SET paused_at = clock_timestamp(), pause_reason = p_reason
    WHERE j.job_type::text = p_queue;
    RETURN FOUND;
END $$;

CREATE FUNCTION mailroom.resume(p_queue text, p_channel text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE public.jobs j SET paused_at = NULL, pause_reason = NULL
    WHERE j.job_type::text = p_queue AND j.paused_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify(p_channel, '');
    RETURN true;
END $$;

-- The rate that all workers of a queue share: a token bucket as one timestamp (the generic cell rate
-- algorithm, ITU-T I.371), which gives way to throttles as a single sender's does. reserve charges
-- recipients and says how long to wait before the call, in seconds, and the rate at present.
CREATE TABLE mailroom.rates (
    job        public.job_type PRIMARY KEY REFERENCES public.jobs,
    free_at    timestamptz NOT NULL DEFAULT '-infinity',
    rate       double precision NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    slowed_at  timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10);

CREATE FUNCTION mailroom.reserve(p_queue text, p_recipients integer, p_ceiling double precision)
RETURNS TABLE (wait_s double precision, rate double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    -- As in the sender's own bucket: the burst in seconds, how long a throttle holds, and how much
    -- of the ceiling comes back a second after that.
    burst_s  CONSTANT double precision := 0.5;
    hold     CONSTANT interval := '60 seconds';
    faster   CONSTANT double precision := 0.01;
    bucket   mailroom.rates;
    now      timestamptz;
    charge_s double precision;
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
    bucket.free_at := greatest(bucket.free_at, now) + charge_s * interval '1 second';
    UPDATE mailroom.rates r SET free_at = bucket.free_at, rate = bucket.rate, changed_at = now
    WHERE r.job = bucket.job;
    RETURN QUERY SELECT greatest(0, extract(epoch FROM bucket.free_at - now)::double precision
                                    - greatest(burst_s, charge_s)), bucket.rate;
END $$;

-- Take 30 % off, at most once a second, after a throttle.
CREATE FUNCTION mailroom.slow(p_queue text, p_ceiling double precision) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE mailroom.rates r
    SET rate = greatest(r.rate * 0.7, p_ceiling * 0.02), slowed_at = clock_timestamp(),
        changed_at = clock_timestamp()
    WHERE r.job::text = p_queue AND r.slowed_at < clock_timestamp() - interval '1 second'
$$;

REVOKE EXECUTE ON FUNCTION
    mailroom.hindrance(bigint),
    mailroom.drop_tokens(bigint[], integer, text),
    mailroom.record(bigint, integer, text, text, bigint[], text[], text[], text[], integer, integer),
    mailroom.pause(text, text),
    mailroom.resume(text, text),
    mailroom.reserve(text, integer, double precision),
    mailroom.slow(text, double precision)
FROM PUBLIC;
