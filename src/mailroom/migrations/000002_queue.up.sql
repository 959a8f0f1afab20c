-- The queue: an exact cursor over public.tokens, and leases on what it handed out.
--
-- The cursor is a window (low, high] of two snapshots and a position (last_txid, last_seq) in it.
-- A token is pending when high sees its transaction, low does not, and it lies behind the position;
-- an empty window (low = high) rolls on to the current snapshot. Ids and clocks say in which order
-- rows were made, only a snapshot says which were visible: so a transaction that commits late is
-- found when it commits, and holds up nobody.
--
-- A claim moves the cursor and writes a lease in one transaction; settling ends the lease. A lease
-- past its due_at is claimed again, before new tokens, under the next generation, and whoever
-- names an older generation can neither settle nor renew it.

CREATE TABLE public.jobs (
    job_type          public.job_type PRIMARY KEY,
    low               pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    high              pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    last_txid         xid8        NOT NULL DEFAULT '0',
    last_seq          bigint      NOT NULL DEFAULT 0,
    system_identifier bigint      NOT NULL DEFAULT (pg_control_system()).system_identifier,
    moved_at          timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10);

-- The window is open to the left, so that tokens from before the queue existed are pending too.
INSERT INTO public.jobs (job_type, low) VALUES ('mailroom', '1:1:');

CREATE TABLE mailroom.leases (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job        public.job_type NOT NULL REFERENCES public.jobs,
    tokens     bigint[]    NOT NULL,
    worker     text        NOT NULL,
    generation integer     NOT NULL,
    due_at     timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX leases_due_idx ON mailroom.leases (job, due_at);

-- One recipient of one mail, as a claim hands it out.
CREATE TYPE mailroom.message AS (
    token  bigint,
    action text,
    email  text,
    login  text,
    secret bytea,
    code   text,
    txid   xid8
);

-- A snapshot of this transaction, in which the transaction itself counts as running. PostgreSQL
-- leaves it out of the list of running ones, so that pg_visible_in_snapshot may call it ended; a
-- token that it inserts after its claim would then lie behind the cursor for ever.
CREATE FUNCTION mailroom.with_own_running(p_snapshot pg_snapshot) RETURNS pg_snapshot
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own xid8 := pg_current_xact_id();
BEGIN
    IF NOT pg_visible_in_snapshot(own, p_snapshot) THEN
        RETURN p_snapshot;
    END IF;
    RETURN format('%s:%s:%s', least(own, pg_snapshot_xmin(p_snapshot)), pg_snapshot_xmax(p_snapshot),
                  (SELECT string_agg(x::text, ',' ORDER BY x)
                   FROM (SELECT pg_snapshot_xip(p_snapshot) UNION SELECT own) running (x)))::pg_snapshot;
END $$;

-- The tokens of the list that may still be mailed, in its order; NULL when none may.
CREATE FUNCTION mailroom.eligible(p_tokens bigint[]) RETURNS mailroom.message[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN (
        SELECT array_agg(ROW(t.id, t.action, a.email, a.login, t.secret, t.code, t.txid)::mailroom.message
                         ORDER BY p.n)
        FROM unnest(p_tokens) WITH ORDINALITY AS p (id, n)
        JOIN public.tokens t ON t.id = p.id
        JOIN public.accounts a ON a.id = t.account
        JOIN mailroom.actions k ON k.action = t.action AND k.account_status = a.status
        WHERE t.consumed_at IS NULL AND t.expires_at > clock_timestamp());
END $$;

-- A logical restore, or a move by logical replication, lands in a cluster whose transaction ids
-- tell another story than the stored window. Whatever is unexpired, unconsumed and not known to
-- have been handed out becomes a lease that is due at once, and the window starts at the current
-- snapshot. Not known means: behind the old window's position, or made after the old cursor last
-- moved. The txids of what was here are set to 1, which every snapshot has seen, so that no later
-- window can meet them a second time.
CREATE FUNCTION mailroom.adopt(p_job public.jobs) RETURNS public.jobs
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_here bigint[];
    unsettled  bigint[];
BEGIN
    -- One statement, so that the snapshot and the rows belong together.
    SELECT pg_current_snapshot(),
           array_agg(t.id ORDER BY t.created_at, t.id),
           array_agg(t.id ORDER BY t.created_at, t.id) FILTER (WHERE
               (t.created_at > p_job.moved_at
                OR NOT (pg_visible_in_snapshot(t.txid, p_job.low)
                        OR pg_visible_in_snapshot(t.txid, p_job.high)
                           AND (t.txid, t.id) <= (p_job.last_txid, p_job.last_seq)))
               AND NOT EXISTS (SELECT FROM mailroom.leases l
                               WHERE l.job = p_job.job_type AND t.id = ANY (l.tokens)))
    INTO p_job.low, found_here, unsettled
    FROM public.tokens t
    WHERE t.consumed_at IS NULL AND t.expires_at > clock_timestamp();

    p_job.low := mailroom.with_own_running(p_job.low);
    UPDATE public.tokens SET txid = '1' WHERE id = ANY (found_here);
    INSERT INTO mailroom.leases (job, tokens, worker, generation, due_at)
    SELECT p_job.job_type, array_agg(u.id ORDER BY u.n), 'restore', 0, clock_timestamp()
    FROM unnest(unsettled) WITH ORDINALITY AS u (id, n) GROUP BY (u.n - 1) / 100;

    p_job.high := p_job.low;
    p_job.last_txid := '0';
    p_job.last_seq := 0;
    p_job.system_identifier := (pg_control_system()).system_identifier;
    UPDATE public.jobs j
    SET low = p_job.low, high = p_job.high, last_txid = '0', last_seq = 0,
        system_identifier = p_job.system_identifier, moved_at = clock_timestamp()
    WHERE j.job_type = p_job.job_type;
    RAISE WARNING 'mailroom: queue "%" was restored from another cluster: % waiting tokens taken over, the cursor starts anew',
        p_job.job_type, coalesce(cardinality(unsettled), 0);
    RETURN p_job;
END $$;

-- Hand out up to p_tokens messages in leases of at most p_lease_tokens, due after p_lease_ms.
-- Leases past their time come first, whole; then what the window yields. Fewer messages than
-- asked for means that nothing more is pending.
--
-- The scan must walk tokens_txid_id_idx with its bounds as index conditions, whatever the planner
-- believes about a table it has not analysed yet: hence the settings.
CREATE FUNCTION mailroom.claim(p_queue text, p_worker text, p_tokens integer, p_lease_tokens integer,
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
                    SELECT ROW(t.id, t.action, a.email, a.login, t.secret, t.code, t.txid)::mailroom.message AS message
                    FROM public.tokens t
                    JOIN public.accounts a ON a.id = t.account
                    JOIN mailroom.actions k ON k.action = t.action AND k.account_status = a.status
                    WHERE t.txid >= span.first AND t.txid <= span.last
                      AND (t.txid, t.id) > (job.last_txid, job.last_seq)
                      AND pg_visible_in_snapshot(t.txid, job.high)
                      AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp()
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

-- End a lease, or only the given tokens of it. False: the lease is not this generation's any more.
CREATE FUNCTION mailroom.settle(p_lease bigint, p_generation integer, p_tokens bigint[] DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_tokens IS NOT NULL THEN
        UPDATE mailroom.leases l
        SET tokens = ARRAY(SELECT u.id FROM unnest(l.tokens) WITH ORDINALITY u (id, n)
                           WHERE u.id <> ALL (p_tokens) ORDER BY u.n)
        WHERE l.id = p_lease AND l.generation = p_generation AND NOT l.tokens <@ p_tokens;
        IF FOUND THEN
            RETURN true;
        END IF;
    END IF;
    DELETE FROM mailroom.leases l
    WHERE l.id = p_lease AND l.generation = p_generation
      AND (p_tokens IS NULL OR l.tokens <@ p_tokens);
    RETURN FOUND;
END $$;

-- Move due_at of the leases that are still of these generations; gives back which they are.
CREATE FUNCTION mailroom.renew(p_leases bigint[], p_generations integer[], p_lease_ms integer)
RETURNS SETOF bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE mailroom.leases l
    SET due_at = clock_timestamp() + p_lease_ms * interval '1 millisecond'
    FROM unnest(p_leases, p_generations) AS held (id, generation)
    WHERE l.id = held.id AND l.generation = held.generation
    RETURNING l.id
$$;

-- Make a worker's leases due at once, but those it keeps; gives back how many tokens that frees.
CREATE FUNCTION mailroom.release(p_worker text, p_keep bigint[] DEFAULT '{}') RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH released AS (
        UPDATE mailroom.leases l SET due_at = clock_timestamp()
        WHERE l.worker = p_worker AND l.id <> ALL (p_keep) AND l.due_at > clock_timestamp()
        RETURNING cardinality(l.tokens) AS tokens)
    SELECT coalesce(sum(r.tokens), 0)::bigint FROM released r
$$;

CREATE FUNCTION mailroom.has_queue(p_queue text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM public.jobs j WHERE j.job_type::text = p_queue)
$$;

-- Seconds until the first lease of the queue is due (0 if one is), NULL when there is none.
CREATE FUNCTION mailroom.next_due(p_queue text) RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT min(greatest(extract(epoch FROM l.due_at - clock_timestamp()), 0))::double precision
    FROM mailroom.leases l JOIN public.jobs j ON j.job_type = l.job
    WHERE j.job_type::text = p_queue
$$;

-- What is to be mailed: waiting for a claim, in flight under a lease, and the age in seconds of the
-- oldest of both (NULL when there is none).
CREATE FUNCTION mailroom.backlog(p_queue text)
RETURNS TABLE (waiting bigint, in_flight bigint, oldest_age double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH leased AS (
        SELECT unnest(l.tokens) AS id
        FROM mailroom.leases l JOIN public.jobs j ON j.job_type = l.job
        WHERE j.job_type::text = p_queue
    ), pending AS (
        SELECT t.created_at
        FROM public.jobs j
        JOIN public.tokens t ON t.txid >= pg_snapshot_xmin(j.low)
        JOIN public.accounts a ON a.id = t.account
        JOIN mailroom.actions k ON k.action = t.action AND k.account_status = a.status
        WHERE j.job_type::text = p_queue
          AND NOT pg_visible_in_snapshot(t.txid, j.low)
          AND NOT (pg_visible_in_snapshot(t.txid, j.high)
                   AND (t.txid, t.id) <= (j.last_txid, j.last_seq))
          AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp()
    ), flying AS (
        SELECT t.created_at FROM leased l JOIN public.tokens t ON t.id = l.id
    )
    SELECT (SELECT count(*) FROM pending), (SELECT count(*) FROM leased),
           extract(epoch FROM clock_timestamp() - least((SELECT min(created_at) FROM pending),
                                                        (SELECT min(created_at) FROM flying)))::double precision
$$;

-- They run with their owner's rights: nobody calls them who was not allowed to.
REVOKE EXECUTE ON FUNCTION
    mailroom.with_own_running(pg_snapshot),
    mailroom.eligible(bigint[]),
    mailroom.adopt(public.jobs),
    mailroom.claim(text, text, integer, integer, integer),
    mailroom.settle(bigint, integer, bigint[]),
    mailroom.renew(bigint[], integer[], integer),
    mailroom.release(text, bigint[]),
    mailroom.has_queue(text),
    mailroom.next_due(text),
    mailroom.backlog(text)
FROM PUBLIC;
