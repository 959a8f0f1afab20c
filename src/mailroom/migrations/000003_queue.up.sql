-- Made from src/mailroom/sql as it was then. A released migration never changes.

SELECT pg_catalog.set_config('search_path', pg_catalog.format('%s, pg_temp', mailroom.user_schema()), true),
       pg_catalog.set_config('check_function_bodies', 'off', true);

-- The cursors: which tokens were handed out, one cursor for each lane.
--
-- A cursor is a window (low, high] of two snapshots and a position (last_txid, last_seq) in it. A token of its lane
-- is pending if high sees its transaction, low does not, and it lies behind the position. An empty window (low =
-- high) moves on to the current snapshot. Ids and clocks say in which order rows were made; only a snapshot says
-- which were visible. So a transaction that commits late is found when it commits, and delays no other.

CREATE TYPE job_type AS ENUM ('mailroom');

CREATE TABLE jobs (
    job_type          job_type PRIMARY KEY,
    system_identifier bigint      NOT NULL DEFAULT (pg_control_system()).system_identifier,
    moved_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    swept_at          timestamptz NOT NULL DEFAULT '-infinity',
    paused_at         timestamptz,
    pause_reason      text,
    -- A second queue over the same tokens would mail each of them twice.
    CONSTRAINT jobs_one_queue_per_database CHECK (job_type = 'mailroom')
) WITH (fillfactor = 10);

INSERT INTO jobs (job_type) VALUES ('mailroom');

COMMENT ON TABLE jobs IS
    'The queue, which is one row. A claim locks it, so that one claim at a time moves the cursors. A database has '
    'one queue.';
COMMENT ON COLUMN jobs.job_type IS 'The queue''s name, which is mailroom.';
COMMENT ON COLUMN jobs.system_identifier IS
    'The cluster whose transaction ids the cursors name. In another cluster the next claim restarts them.';
COMMENT ON COLUMN jobs.moved_at IS 'When a claim last moved the cursors.';
COMMENT ON COLUMN jobs.swept_at IS 'When a claim last checked all leases.';
COMMENT ON COLUMN jobs.paused_at IS 'When a person paused the queue; NULL if it is not paused.';
COMMENT ON COLUMN jobs.pause_reason IS 'The reason that this person gave.';

CREATE TABLE mailroom.cursors (
    lane      mailroom.lane PRIMARY KEY,
    low       pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    high      pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    low_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    high_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_txid xid8        NOT NULL DEFAULT '0',
    last_seq  bigint      NOT NULL DEFAULT 0,
    due_floor timestamptz NOT NULL DEFAULT '-infinity',
    owed      integer     NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

-- The windows are open to the left, so that tokens from before the queue existed are pending too.
INSERT INTO mailroom.cursors (lane, low)
SELECT l, '1:1:' FROM pg_catalog.unnest(pg_catalog.enum_range(NULL::mailroom.lane)) l;

COMMENT ON TABLE mailroom.cursors IS
    'For each lane the cursor that says which tokens were handed out. A token is pending if the snapshot high sees '
    'its transaction, low does not, and it lies behind the position.';
COMMENT ON COLUMN mailroom.cursors.lane IS 'The lane.';
COMMENT ON COLUMN mailroom.cursors.low IS 'The snapshot before the window: what it sees was handed out.';
COMMENT ON COLUMN mailroom.cursors.high IS 'The snapshot at the window''s end: what it does not see comes later.';
COMMENT ON COLUMN mailroom.cursors.low_at IS
    'When the snapshot low was taken. A token that had expired by then never waited.';
COMMENT ON COLUMN mailroom.cursors.high_at IS 'When the snapshot high was taken.';
COMMENT ON COLUMN mailroom.cursors.last_txid IS
    'With last_seq the position in the window: the transaction of the last token handed out; 0 is the '
    'window''s beginning.';
COMMENT ON COLUMN mailroom.cursors.last_seq IS 'The id of the last token handed out.';
COMMENT ON COLUMN mailroom.cursors.due_floor IS
    'The last claim found no lease of the lane due before this time; -infinity if it checked all of them.';
COMMENT ON COLUMN mailroom.cursors.owed IS
    'In tenths of a mail: what the lane still has to get of its tenth, while the lanes before it do not end.';

-- The cursors find a token by its lane and its transaction.
CREATE FUNCTION mailroom.keep_lane() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'mailroom: the lane of a token cannot be changed: a cursor may have passed it'
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Give the lane when the token is inserted.';
END $$;
COMMENT ON FUNCTION mailroom.keep_lane IS 'Refuses to change the lane of a token, which its cursor may have passed.';

CREATE TRIGGER tokens_keep_lane BEFORE UPDATE OF lane ON tokens
    FOR EACH ROW WHEN (OLD.lane IS DISTINCT FROM NEW.lane) EXECUTE FUNCTION mailroom.keep_lane();

-- PostgreSQL leaves the current transaction out of the list of running ones, so pg_visible_in_snapshot may call
-- it ended. A token that it inserts after its claim would then lie behind the cursor for ever.
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
COMMENT ON FUNCTION mailroom.with_own_running IS
    'Returns a snapshot of the current transaction with that transaction among the running ones.';

-- After a logical restore, or a move by logical replication, the stored windows name transaction ids of another
-- cluster. The tokens that are unexpired (or may be renewed), unconsumed and not known to have been handed out go into
-- leases that are due at once, and the windows start at the current snapshot. Not known to have been handed out are those
-- behind the old position and those made after the old cursors last moved, without those that the ledger has. The
-- txids of all tokens found here become 1, which each snapshot has seen, so that no later window finds them a
-- second time; older ones that have expired are renewed by no claim.
CREATE FUNCTION mailroom.restart_cursor(p_moved_at timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    snapshot   pg_snapshot;
    found_here bigint[];
    unsettled  bigint[];
BEGIN
    -- One statement, so that the snapshot and the rows belong together.
    SELECT pg_current_snapshot(),
           array_agg(t.id ORDER BY t.created_at, t.id),
           array_agg(t.id ORDER BY t.created_at, t.id) FILTER (WHERE
               (t.created_at > p_moved_at
                OR NOT coalesce(pg_visible_in_snapshot(t.txid, c.low)
                                OR pg_visible_in_snapshot(t.txid, c.high)
                                   AND (t.txid, t.id) <= (c.last_txid, c.last_seq), false))
               AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
               AND NOT EXISTS (SELECT FROM mailroom.deliveries d
                               WHERE d.token = t.id AND mailroom.is_of(d.fingerprint, t.secret))
               AND (t.expires_at > clock_timestamp() OR t.expires_at > p_moved_at AND mailroom.renewable(t)))
    INTO snapshot, found_here, unsettled
    FROM public.tokens t
    LEFT JOIN mailroom.cursors c ON c.lane = t.lane
    WHERE t.consumed_at IS NULL
      AND (t.expires_at > clock_timestamp() OR t.created_at > clock_timestamp() - interval '2 days');

    snapshot := mailroom.with_own_running(snapshot);
    UPDATE public.tokens SET txid = '1' WHERE id = ANY (found_here);
    INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)
    SELECT o.lane, array_agg(o.id ORDER BY o.n), 'restore', 0, clock_timestamp()
    FROM (SELECT t.lane, u.id, u.n, row_number() OVER (PARTITION BY t.lane ORDER BY u.n) AS in_lane
          FROM unnest(unsettled) WITH ORDINALITY AS u (id, n) JOIN public.tokens t ON t.id = u.id) o
    GROUP BY o.lane, (o.in_lane - 1) / 100;

    UPDATE mailroom.cursors c
    SET low = snapshot, high = snapshot, low_at = n.now, high_at = n.now, last_txid = '0', last_seq = 0,
        due_floor = '-infinity', owed = 0
    FROM (SELECT clock_timestamp() AS now) n;
    UPDATE public.jobs j
    SET system_identifier = (pg_control_system()).system_identifier, moved_at = clock_timestamp(),
        swept_at = '-infinity';
    RAISE WARNING 'mailroom: the queue was restored from another cluster: the cursor starts anew, waiting tokens taken over: %',
        coalesce(cardinality(unsettled), 0);
END $$;
COMMENT ON FUNCTION mailroom.restart_cursor IS
    'Restarts the cursors in a cluster that the queue was restored into, and puts the waiting tokens into leases. '
    'p_moved_at is when the old ones last moved.';

-- Leases: what was handed out and is not settled.
--
-- A claim moves the cursor and writes a lease in one transaction; settling ends the lease. A lease past its
-- due_at is claimed again, before new tokens. Each claim gives it a new random key, and a worker that names an
-- older key can neither settle nor renew it. An id alone does not name a lease: after an asynchronous failover
-- that lost the last commits, sequences go back and give the same ids again.

CREATE TABLE mailroom.leases (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane       mailroom.lane NOT NULL,
    tokens     bigint[]    NOT NULL,
    worker     text        NOT NULL,
    key        uuid        NOT NULL DEFAULT gen_random_uuid(),
    generation integer     NOT NULL,
    due_at     timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Compressing a lease of a thousand tokens took a quarter of its claim's time.
ALTER TABLE mailroom.leases ALTER COLUMN tokens SET STORAGE EXTERNAL;
CREATE INDEX leases_lane_due_idx ON mailroom.leases (lane, due_at);

COMMENT ON TABLE mailroom.leases IS
    'What is handed out and not settled. The first worker to claim after a lease''s due_at gets it.';
COMMENT ON COLUMN mailroom.leases.id IS 'The lease.';
COMMENT ON COLUMN mailroom.leases.lane IS 'The lane of its tokens.';
COMMENT ON COLUMN mailroom.leases.tokens IS 'The tokens that are not settled yet.';
COMMENT ON COLUMN mailroom.leases.worker IS
    'The worker that holds it; empty while its tokens wait for a retry, scheduled while they wait for send_at, '
    'paused while they are put off since they cannot be sent, restore after a restore.';
COMMENT ON COLUMN mailroom.leases.key IS
    'Random, and new with each claim. A worker that names an older key can neither settle nor renew it.';
COMMENT ON COLUMN mailroom.leases.generation IS 'How often it was claimed.';
COMMENT ON COLUMN mailroom.leases.due_at IS 'When it may be claimed again.';

CREATE FUNCTION mailroom.settle(p_lease bigint, p_key uuid, p_tokens bigint[] DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF p_tokens IS NOT NULL THEN
        UPDATE mailroom.leases l
        SET tokens = ARRAY(SELECT u.id FROM unnest(l.tokens) WITH ORDINALITY u (id, n)
                           WHERE u.id <> ALL (p_tokens) ORDER BY u.n)
        WHERE l.id = p_lease AND l.key = p_key AND NOT l.tokens <@ p_tokens;
        IF FOUND THEN
            RETURN true;
        END IF;
    END IF;
    DELETE FROM mailroom.leases l
    WHERE l.id = p_lease AND l.key = p_key
      AND (p_tokens IS NULL OR l.tokens <@ p_tokens);
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION mailroom.settle IS
    'Ends a lease, or only the given tokens of it. Returns false if the lease no longer has this key.';

CREATE FUNCTION mailroom.record(p_lease bigint, p_key uuid, p_attempt integer, p_worker text,
                                p_tokens bigint[], p_fingerprints bytea[], p_results text[], p_providers text[],
                                p_message_ids text[], p_details text[], p_recipients text[], p_templates text[],
                                p_languages text[], p_retry_ms integer, p_retry_limit integer, p_never_early boolean)
RETURNS TABLE (token bigint, outcome text, settled boolean, age double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    outcomes text[];
    ages     double precision[];
    subjects text[];
    deleted  boolean[];
    rest     bigint[];
    put_off  boolean;
    lost     boolean;
    ours     boolean;
BEGIN
    -- A retry by hand grants a token as many attempts again. LIMIT makes it probe the primary key.
    SELECT array_agg(CASE
        WHEN NOT mailroom.is_of(u.fingerprint, u.secret) THEN 'lost'
        WHEN u.result IN ('sent', 'rejected', 'unknown') THEN u.result
        WHEN u.result = 'failed' AND p_retry_limit <= 1 + (
            SELECT count(*) FROM mailroom.deliveries d
            WHERE d.token = u.id AND d.fingerprint = u.fingerprint AND d.result = 'failed' AND d.id > coalesce((
                SELECT max(h.id) FROM mailroom.deliveries h
                WHERE h.token = u.id AND h.fingerprint = u.fingerprint
                  AND h.outcome = 'retried' AND h.result = 'by hand'), 0))
            THEN 'rejected'
        ELSE 'retried' END ORDER BY u.n),
        array_agg(extract(epoch FROM clock_timestamp() - u.requested_at)::double precision ORDER BY u.n),
        array_agg(coalesce(u.subject, '') ORDER BY u.n),
        array_agg(u.secret IS NULL ORDER BY u.n)
    INTO outcomes, ages, subjects, deleted
    FROM (SELECT g.*, t.secret, t.requested_at, t.subject
          FROM unnest(p_tokens, p_fingerprints, p_results) WITH ORDINALITY AS g (id, fingerprint, result, n)
          LEFT JOIN LATERAL (SELECT x.secret, coalesce(x.send_at, x.created_at) AS requested_at, x.subject
                             FROM public.tokens x WHERE x.id = g.id LIMIT 1) t
              ON true) u;
    -- The recipient of a deleted token may have been forgotten since it was handed out.
    INSERT INTO mailroom.deliveries
        (token, fingerprint, attempt, outcome, result, provider, message_id, detail, worker, recipient, template,
         language, subject)
    SELECT u.id, u.fingerprint, p_attempt, u.outcome, u.result, u.provider, left(u.message_id, 200),
           CASE WHEN u.deleted THEN mailroom.without_addresses(u.detail) ELSE u.detail END, p_worker,
           CASE WHEN u.deleted THEN '' ELSE u.recipient END, u.template, u.language, u.subject
    FROM unnest(p_tokens, p_fingerprints, outcomes, p_results, p_providers, p_message_ids, p_details, p_recipients,
                p_templates, p_languages, subjects, deleted)
         AS u (id, fingerprint, outcome, result, provider, message_id, detail, recipient, template, language, subject,
               deleted)
    WHERE u.result <> '' AND u.outcome <> 'lost';

    SELECT coalesce(array_agg(u.id ORDER BY u.n), '{}'), bool_and(u.result IN ('', 'paused')),
           bool_or(u.result = 'unknown')
    INTO rest, put_off, lost
    FROM unnest(p_tokens, p_results, outcomes) WITH ORDINALITY AS u (id, result, outcome, n)
    WHERE u.outcome NOT IN ('sent', 'rejected', 'lost');
    IF cardinality(rest) > 0 THEN
        UPDATE mailroom.leases l
        SET tokens = rest, worker = CASE WHEN put_off THEN 'paused' ELSE '' END, due_at = least(
            clock_timestamp() + p_retry_ms * interval '1 millisecond',
            -- A mail whose answer was lost waits for an event, and is sent once more before it is too late.
            (SELECT CASE WHEN lost AND NOT p_never_early THEN least(greatest(min(t.expires_at) - interval '5 seconds',
                                                       clock_timestamp() + interval '1 second'), min(t.expires_at))
                         ELSE min(t.expires_at) END
             FROM public.tokens t WHERE t.id = ANY (rest)))
        WHERE l.id = p_lease AND l.key = p_key;
    ELSE
        DELETE FROM mailroom.leases l WHERE l.id = p_lease AND l.key = p_key;
    END IF;
    ours := FOUND;
    -- A mail that was not sent counts for no limit, unless an earlier attempt may have sent it.
    IF ours THEN
        DELETE FROM mailroom.granted g
        WHERE g.token = ANY (ARRAY(SELECT u.id FROM unnest(p_tokens, outcomes) AS u (id, outcome)
                                   WHERE u.outcome IN ('retried', 'rejected')))
          AND NOT EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = g.token AND d.outcome = 'unknown');
    END IF;
    RETURN QUERY
        SELECT u.id, u.outcome, ours, u.age FROM unnest(p_tokens, outcomes, ages) AS u (id, outcome, age);
END $$;
COMMENT ON FUNCTION mailroom.record IS
    'Settles a lease with the outcomes of an attempt. The outcomes go into the ledger whether or not the lease '
    'still has this key; settled says whether it did. Sent and rejected tokens leave the lease. The '
    'others are due after p_retry_ms, or when the first of them expires if that is earlier; five seconds before that '
    'if an answer is unknown, unless p_never_early, as where the retry may go by another transport. A token that failed '
    'p_retry_limit times without a stated reason is rejected. An empty result means that the token was not '
    'tried; it leaves no row. If all that are to be tried again were not tried, or paused, then '
    'release(''paused'') makes them due. The outcome is lost, and nothing is written, if the token with this id has '
    'another fingerprint: a failover lost the token, and its id was given again. The row of a deleted token has no '
    'address. age is in seconds since the mail was '
    'requested, or since send_at; NULL for a deleted token.';

CREATE FUNCTION mailroom.renew(p_leases bigint[], p_keys uuid[], p_lease_ms integer)
RETURNS SETOF uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    UPDATE mailroom.leases l
    SET due_at = clock_timestamp() + p_lease_ms * interval '1 millisecond'
    FROM unnest(p_leases, p_keys) AS held (id, key)
    WHERE l.id = held.id AND l.key = held.key
    RETURNING l.key
$$;
COMMENT ON FUNCTION mailroom.renew IS
    'Moves due_at of the leases that still have these keys, and returns those keys.';

CREATE FUNCTION mailroom.release(p_worker text, p_keep uuid[] DEFAULT '{}') RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH released AS (
        UPDATE mailroom.leases l SET due_at = clock_timestamp()
        WHERE l.worker = p_worker AND l.key <> ALL (p_keep) AND l.due_at > clock_timestamp()
        RETURNING cardinality(l.tokens) AS tokens)
    SELECT coalesce(sum(r.tokens), 0)::bigint FROM released r
$$;
COMMENT ON FUNCTION mailroom.release IS
    'Makes a worker''s leases due at once, except those with a key in p_keep, and returns how many tokens that frees.';

-- Suppressed addresses: nothing is sent to them, until a person lifts it.

-- HMAC-SHA-256 (RFC 2104) with sha256(), which is all that PostgreSQL has without an extension. The table keeps the key
-- as the two blocks that the hash begins with.
CREATE TABLE mailroom.hash_key (
    one_row boolean PRIMARY KEY DEFAULT true,
    inner_block bytea NOT NULL,
    outer_block bytea NOT NULL,
    CONSTRAINT hash_key_one_row CHECK (one_row),
    CONSTRAINT hash_key_blocks CHECK (octet_length(inner_block) = 64 AND octet_length(outer_block) = 64)
);

INSERT INTO mailroom.hash_key (inner_block, outer_block)
SELECT pg_catalog.string_agg(pg_catalog.set_byte('\x00', 0, b.byte OPERATOR(pg_catalog.#) 54), '' ORDER BY b.n),
       pg_catalog.string_agg(pg_catalog.set_byte('\x00', 0, b.byte OPERATOR(pg_catalog.#) 92), '' ORDER BY b.n)
FROM (SELECT n, CASE WHEN n OPERATOR(pg_catalog.<) 32 THEN pg_catalog.get_byte(k.key, n) ELSE 0 END AS byte
      FROM (SELECT mailroom.random_secret() AS key OFFSET 0) k, pg_catalog.generate_series(0, 63) n) b;

COMMENT ON TABLE mailroom.hash_key IS
    'The key of the hashes of suppressed addresses, which only the owner may read. Without it a hash tells nobody whose '
    'address it is.';
COMMENT ON COLUMN mailroom.hash_key.one_row IS 'Always true, so that there is one row.';
COMMENT ON COLUMN mailroom.hash_key.inner_block IS 'The key, as HMAC mixes it into the inner hash.';
COMMENT ON COLUMN mailroom.hash_key.outer_block IS 'The key, as HMAC mixes it into the outer hash.';

CREATE FUNCTION mailroom.address_hash(p_email text) RETURNS bytea
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT sha256(k.outer_block || sha256(k.inner_block || convert_to(mailroom.normal_address(p_email), 'UTF8')))
    FROM mailroom.hash_key k
$$;
COMMENT ON FUNCTION mailroom.address_hash IS
    'Returns the keyed hash (HMAC-SHA-256) of an address, the same for all its spellings.';

CREATE TABLE mailroom.suppressions (
    hash    bytea PRIMARY KEY,
    address text,
    reason  text        NOT NULL,
    source  text        NOT NULL DEFAULT '',
    event   bigint,
    at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX suppressions_at_idx ON mailroom.suppressions (at, hash);

COMMENT ON TABLE mailroom.suppressions IS
    'The addresses that get no mail: of a permanent bounce or a complaint, or by a person''s decision.';
COMMENT ON COLUMN mailroom.suppressions.hash IS 'mailroom.address_hash of the address.';
COMMENT ON COLUMN mailroom.suppressions.address IS 'The address as it was given; NULL after mailroom.forget.';
COMMENT ON COLUMN mailroom.suppressions.reason IS 'bounced, complained, or a person''s reason.';
COMMENT ON COLUMN mailroom.suppressions.source IS 'Who suppressed it: SES, or the database user of a person.';
COMMENT ON COLUMN mailroom.suppressions.event IS 'The event of mailroom.events that suppressed it; NULL without one.';
COMMENT ON COLUMN mailroom.suppressions.at IS 'Since when.';

CREATE FUNCTION mailroom.suppressed(p_email text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT s.reason FROM mailroom.suppressions s WHERE s.hash = (SELECT mailroom.address_hash(p_email))
$$;
COMMENT ON FUNCTION mailroom.suppressed IS
    'Returns why an address gets no mail: bounced, complained, or a person''s reason; NULL if it gets mail.';

-- One statement for the recipients of a claim.
CREATE FUNCTION mailroom.suppressed_among(p_emails text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT e.email FROM mailroom.hash_key k CROSS JOIN unnest(p_emails) AS e (email)
        WHERE EXISTS (SELECT FROM mailroom.suppressions s
                      WHERE s.hash = sha256(k.outer_block || sha256(
                          k.inner_block || convert_to(mailroom.normal_address(e.email), 'UTF8')))));
END $$;
COMMENT ON FUNCTION mailroom.suppressed_among IS 'Returns those of these addresses that are suppressed.';

CREATE FUNCTION mailroom.suppress(p_email text, p_reason text, p_source text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF p_email IS NULL OR char_length(p_email) > 254 OR p_email ~ '[\u0001-\u001f\u007f-\u009f]'
       OR p_email !~ '^("[^"@]+"|[^\s\u00a0@<>,;"]+)@[^\s\u00a0@<>,;"]+$' THEN
        RAISE EXCEPTION 'mailroom: an address to suppress has one @, at most 254 characters, and no space, control '
                        'character, name or second address'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give the bare address, such as zoe@example.com.';
    ELSIF p_source = 'SES' THEN
        RAISE EXCEPTION 'mailroom: the source SES is that of suppressions by its events'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave the source out, or name a person.';
    ELSIF coalesce(p_reason, '') !~ '\S' THEN
        RAISE EXCEPTION 'mailroom: a suppression needs a reason' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO mailroom.suppressions (hash, address, reason, source)
    VALUES (mailroom.address_hash(p_email), p_email, left(p_reason, 200), left(p_source, 200))
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION mailroom.suppress IS
    'Suppresses an address, in all its spellings. Returns false, and changes nothing, if it is suppressed already.';

CREATE FUNCTION mailroom.unsuppress(p_email text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    DELETE FROM mailroom.suppressions s WHERE s.hash = mailroom.address_hash(p_email);
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION mailroom.unsuppress IS
    'Lets an address get mail again, in all its spellings. Returns false if it was not suppressed.';

CREATE FUNCTION mailroom.list_suppressions(p_before_at timestamptz, p_before_hash bytea, p_limit integer)
RETURNS TABLE (hash bytea, address text, reason text, source text, at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT s.hash, s.address, s.reason, s.source, s.at FROM mailroom.suppressions s
    WHERE (s.at, s.hash) < (p_before_at, p_before_hash) ORDER BY s.at DESC, s.hash DESC LIMIT p_limit
$$;
COMMENT ON FUNCTION mailroom.list_suppressions IS
    'Returns suppressions, newest first, from before another one (its at and hash). One that was forgotten has no address.';

-- Events: what SES says became of a mail after it took it. They are facts: insert only, and unique by what they say,
-- so that repeated, late and unordered ones change nothing.

CREATE TABLE mailroom.events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text        NOT NULL,
    message_id  text        NOT NULL DEFAULT '',
    token       bigint,
    fingerprint bytea,
    attempt     integer,
    recipient   text        NOT NULL DEFAULT '',
    at          timestamptz NOT NULL,
    type        text        NOT NULL DEFAULT '',
    subtype     text        NOT NULL DEFAULT '',
    status      text        NOT NULL DEFAULT '',
    diagnostic  text        NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    digest      bytea       NOT NULL,
    CONSTRAINT events_kind_check CHECK (kind IN ('sent', 'delivered', 'bounced', 'complained', 'delayed', 'rejected',
                                                 'rendering_failed'))
);
CREATE UNIQUE INDEX events_digest_key ON mailroom.events (digest);
CREATE INDEX events_token_idx ON mailroom.events (token, fingerprint) WHERE token IS NOT NULL;
CREATE INDEX events_message_id_idx ON mailroom.events (message_id) WHERE message_id <> '';
CREATE INDEX events_received_at_idx ON mailroom.events (received_at);
CREATE INDEX events_unrendered_idx ON mailroom.events (received_at) WHERE kind = 'rendering_failed';

COMMENT ON TABLE mailroom.events IS
    'What SES reported about mails that it had taken. Insert only: only mailroom.forget erases words of a row, and '
    '`mailroom prune` deletes old rows.';
COMMENT ON COLUMN mailroom.events.id IS 'The order of insertion.';
COMMENT ON COLUMN mailroom.events.kind IS
    'sent, delivered (to the recipient''s server), bounced, complained, delayed, rejected (by SES: a virus), '
    'rendering_failed (SES could not make the mail from its template).';
COMMENT ON COLUMN mailroom.events.message_id IS 'SES''s id of the mail.';
COMMENT ON COLUMN mailroom.events.token IS
    'The token, by the mail''s tags, or by the message id in the ledger. NULL if neither names one.';
COMMENT ON COLUMN mailroom.events.fingerprint IS 'The fingerprint of the token''s secret, from the same place.';
COMMENT ON COLUMN mailroom.events.attempt IS 'The attempt, from the same place.';
COMMENT ON COLUMN mailroom.events.recipient IS 'The address that the event is about, as SES writes it.';
COMMENT ON COLUMN mailroom.events.at IS 'When it happened, by SES''s clock.';
COMMENT ON COLUMN mailroom.events.type IS
    'Of a bounce: permanent, transient, undetermined. Of a complaint: the kind of feedback.';
COMMENT ON COLUMN mailroom.events.subtype IS 'SES''s closer word, such as General or MailboxFull.';
COMMENT ON COLUMN mailroom.events.status IS 'The status code of the recipient''s server, such as 5.1.1.';
COMMENT ON COLUMN mailroom.events.diagnostic IS 'The words of the recipient''s server or of SES.';
COMMENT ON COLUMN mailroom.events.received_at IS 'When the row was written.';
COMMENT ON COLUMN mailroom.events.digest IS 'A keyed hash of what the event says. A second row cannot say the same.';

CREATE TRIGGER events_insert_only
    BEFORE UPDATE OF id, kind, message_id, token, fingerprint, attempt, at, type, subtype, status, received_at, digest
    ON mailroom.events FOR EACH STATEMENT EXECUTE FUNCTION mailroom.refuse_update();

CREATE TABLE mailroom.unreadable_events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    text        text        NOT NULL,
    reason      text        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    digest      bytea       NOT NULL
);
CREATE UNIQUE INDEX unreadable_events_digest_key ON mailroom.unreadable_events (digest);
CREATE INDEX unreadable_events_received_at_idx ON mailroom.unreadable_events (received_at);

COMMENT ON TABLE mailroom.unreadable_events IS
    'Messages of the queue of events that could not be read. `mailroom prune` deletes old rows.';
COMMENT ON COLUMN mailroom.unreadable_events.id IS 'The order of insertion.';
COMMENT ON COLUMN mailroom.unreadable_events.text IS 'The message without codes and tokens, up to 65,536 characters of it.';
COMMENT ON COLUMN mailroom.unreadable_events.reason IS 'Why it could not be read.';
COMMENT ON COLUMN mailroom.unreadable_events.received_at IS 'When the row was written.';
COMMENT ON COLUMN mailroom.unreadable_events.digest IS 'The SHA-256 of the whole message without codes and tokens, of which one row is kept.';

-- Under the lock of settle_known two readers, or a reader and a claim, write one row for a mail.
CREATE FUNCTION mailroom.settle_known(p_tokens bigint[], p_attempt integer DEFAULT NULL, p_worker text DEFAULT '')
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM mailroom.known_answers(p_tokens, p_attempt)) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('mailroom.settle_known', 0));
    INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, result, provider, message_id, detail,
                                     worker, recipient, template, language, subject)
    SELECT k.token, k.fingerprint, k.attempt, 'sent', 'known', coalesce(d.provider, 'ses'), k.message_id,
           'known from SES''s event', coalesce(d.worker, p_worker), coalesce(d.recipient, t.email, ''),
           coalesce(d.template, ''), coalesce(d.language, ''), coalesce(d.subject, t.subject, '')
    FROM mailroom.known_answers(p_tokens, p_attempt) k
    LEFT JOIN mailroom.deliveries d ON d.id = k.delivery
    LEFT JOIN public.tokens t ON t.id = k.token;
END $$;
COMMENT ON FUNCTION mailroom.settle_known IS
    'Records as sent those of these tokens whose answer was lost, and whose mail SES has taken, as an event of it says. '
    'p_attempt and p_worker are those of a lease past its time: its worker may have been killed before it recorded the '
    'answer.';

CREATE FUNCTION mailroom.known_answers(p_tokens bigint[], p_attempt integer)
RETURNS TABLE (token bigint, fingerprint bytea, attempt integer, delivery bigint, message_id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT DISTINCT ON (e.token, e.fingerprint) e.token, e.fingerprint, e.attempt, d.id, e.message_id
    FROM (SELECT t.id AS token, mailroom.fingerprint(t.secret) AS fingerprint
          FROM public.tokens t WHERE t.id = ANY (p_tokens)
          UNION
          SELECT u.token, u.fingerprint FROM mailroom.deliveries u
          WHERE u.token = ANY (p_tokens) AND u.outcome = 'unknown') p
    -- OFFSET 0 holds a lookup for each mail: of a small table the planner may walk all events.
    JOIN LATERAL (SELECT * FROM mailroom.events e
                  WHERE e.token = p.token AND e.fingerprint = p.fingerprint OFFSET 0) e ON true
    LEFT JOIN LATERAL (
        SELECT x.id FROM mailroom.deliveries x
        WHERE x.token = e.token AND x.fingerprint = e.fingerprint AND x.attempt = e.attempt AND x.outcome = 'unknown'
          AND NOT EXISTS (SELECT FROM mailroom.deliveries o
                          WHERE o.token = x.token AND o.fingerprint = x.fingerprint AND o.attempt = x.attempt
                            AND o.id > x.id)
        LIMIT 1) d ON true
    WHERE e.kind NOT IN ('rejected', 'rendering_failed')
      AND (d.id IS NOT NULL
           OR e.attempt = p_attempt
              AND EXISTS (SELECT FROM public.tokens t
                          WHERE t.id = e.token AND mailroom.fingerprint(t.secret) = e.fingerprint))
      AND NOT EXISTS (SELECT FROM mailroom.deliveries o
                      WHERE o.token = e.token AND o.fingerprint = e.fingerprint AND o.outcome = 'sent'
                        AND NOT mailroom.unrendered(o.token, o.id))
      -- A retry by hand counts its attempts from one again.
      AND NOT EXISTS (SELECT FROM mailroom.events f
                      WHERE f.token = e.token AND f.fingerprint = e.fingerprint AND f.message_id = e.message_id
                        AND f.kind = 'rendering_failed')
    ORDER BY e.token, e.fingerprint, d.id DESC NULLS LAST, e.id
$$;
COMMENT ON FUNCTION mailroom.known_answers IS
    'Returns which mails of these tokens SES took, as an event says, though the answer was lost: the ledger has it as '
    'unknown (delivery is that row), or the attempt is p_attempt.';

CREATE FUNCTION mailroom.record_events(p_events jsonb) RETURNS TABLE (kind text, is_new boolean, is_known boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    given mailroom.events[];
    added mailroom.events[];
    event mailroom.events;
BEGIN
    -- The rows have no ids yet: their numbers in the array stand for them.
    SELECT coalesce(array_agg(ROW(g.n, g.kind, g.message_id, coalesce(g.token, d.token),
                                  CASE WHEN g.token IS NULL THEN d.fingerprint ELSE g.fingerprint END,
                                  CASE WHEN g.token IS NULL THEN d.attempt ELSE g.attempt END,
                                  g.recipient, coalesce(g.at, clock_timestamp()), g.type, g.subtype, g.status,
                                  g.diagnostic, NULL, g.digest)::mailroom.events ORDER BY g.n), '{}')
    INTO given
    FROM (SELECT r.*, sha256(k.inner_block || convert_to(jsonb_build_array(
                     r.kind, r.message_id, r.recipient, extract(epoch FROM r.at), r.type, r.subtype, r.status,
                     r.diagnostic)::text, 'UTF8')) AS digest
          FROM mailroom.hash_key k, (SELECT o.n, o.event ->> 'kind' AS kind, left(coalesce(o.event ->> 'message_id', ''), 200) AS message_id,
                       (o.event ->> 'token')::bigint AS token, decode(o.event ->> 'fingerprint', 'hex') AS fingerprint,
                       (o.event ->> 'attempt')::integer AS attempt,
                       left(coalesce(o.event ->> 'recipient', ''), 320) AS recipient,
                       (o.event ->> 'at')::timestamptz AS at, left(coalesce(o.event ->> 'type', ''), 100) AS type,
                       left(coalesce(o.event ->> 'subtype', ''), 100) AS subtype,
                       left(coalesce(o.event ->> 'status', ''), 100) AS status,
                       left(coalesce(o.event ->> 'diagnostic', ''), 2000) AS diagnostic
                FROM jsonb_array_elements(p_events) WITH ORDINALITY AS o (event, n)) r) g
    LEFT JOIN LATERAL (
        SELECT x.token, x.fingerprint, x.attempt
        FROM (SELECT y.* FROM mailroom.deliveries y
              WHERE g.token IS NULL AND y.message_id = g.message_id AND y.message_id <> ''
                -- A mail's header has its message id, but not the tags: its recipient must not be able to pause an action.
                AND g.kind <> 'rendering_failed'
              LIMIT 100) x
        ORDER BY mailroom.normal_address(x.recipient) = mailroom.normal_address(g.recipient) DESC, x.id DESC
        LIMIT 1) d ON true;

    -- In the order of the digests, so that two readers with the same events wait for each other and do not deadlock.
    WITH new AS (
        INSERT INTO mailroom.events (kind, message_id, token, fingerprint, attempt, recipient, at, type, subtype, status,
                                     diagnostic, digest)
        SELECT DISTINCT ON (g.digest) g.kind, g.message_id, g.token, g.fingerprint, g.attempt,
               CASE WHEN f.forgotten THEN '' ELSE g.recipient END, g.at, g.type, g.subtype, g.status,
               CASE WHEN f.forgotten THEN mailroom.without_addresses(g.diagnostic) ELSE g.diagnostic END, g.digest
        FROM unnest(given) g
        -- NULL if the ledger does not have the mail, as in a pipe. A forged event must not hide whom it suppresses.
        CROSS JOIN LATERAL (
            SELECT bool_and(d.recipient = '')
                   AND NOT EXISTS (SELECT FROM public.tokens t
                                   WHERE t.id = g.token AND mailroom.fingerprint(t.secret) = g.fingerprint) AS forgotten
            FROM mailroom.deliveries d WHERE d.token = g.token AND d.fingerprint = g.fingerprint) f
        ORDER BY g.digest, g.id
        ON CONFLICT DO NOTHING RETURNING *)
    SELECT coalesce(array_agg(n::mailroom.events ORDER BY n.id), '{}') INTO added FROM new n;

    INSERT INTO mailroom.suppressions (hash, address, reason, source, event)
    SELECT DISTINCT ON (a.hash) a.hash, CASE WHEN a.known THEN a.address END, a.kind, 'SES', a.id
    FROM (SELECT e.kind, e.id, r.n, r.address, mailroom.address_hash(r.address) AS hash, e.recipient = g.recipient AS known
          FROM unnest(added) e JOIN unnest(given) g ON g.digest = e.digest
          -- The recipient's server may name its own mailbox, and SES writes a domain in its own way.
          CROSS JOIN LATERAL (
              SELECT 1, g.recipient
              UNION ALL
              SELECT 2, coalesce((SELECT d.recipient FROM mailroom.deliveries d
                                  WHERE d.token = e.token AND d.fingerprint = e.fingerprint AND d.recipient <> ''
                                  ORDER BY d.message_id = e.message_id DESC, d.id DESC LIMIT 1),
                                 (SELECT t.email FROM public.tokens t
                                  WHERE t.id = e.token AND mailroom.fingerprint(t.secret) = e.fingerprint))
          ) AS r (n, address)
          WHERE (e.kind = 'bounced' AND e.type = 'permanent' OR e.kind = 'complained')
            AND r.address ~ '^[^@]+@[^@]+$') a
    ORDER BY a.hash, a.n, a.id
    ON CONFLICT DO NOTHING;

    IF EXISTS (SELECT FROM unnest(added) a WHERE a.token IS NOT NULL) THEN
        PERFORM mailroom.settle_known(ARRAY(SELECT DISTINCT a.token FROM unnest(added) a WHERE a.token IS NOT NULL));
    END IF;
    IF EXISTS (SELECT FROM unnest(added) a WHERE a.kind = 'rendering_failed') THEN
        PERFORM mailroom.fail_unrendered();
    END IF;

    FOR event IN SELECT a.* FROM unnest(added) a WHERE a.kind IN ('bounced', 'complained')
                 ORDER BY a.at, a.id LOOP
        PERFORM pg_notify('mailroom_events', json_build_object(
            'token', event.token, 'kind', event.kind, 'type', event.type, 'event', event.id,
            'subject', (SELECT t.subject FROM public.tokens t
                        WHERE t.id = event.token AND mailroom.is_of(event.fingerprint, t.secret)))::text);
    END LOOP;

    RETURN QUERY
        SELECT g.kind, a.digest IS NOT NULL AND row_number() OVER (PARTITION BY g.digest ORDER BY g.id) = 1,
               EXISTS (SELECT FROM mailroom.deliveries d
                       WHERE d.message_id = g.message_id AND d.message_id <> '')
               OR EXISTS (SELECT FROM mailroom.deliveries d WHERE d.token = g.token AND d.fingerprint = g.fingerprint)
               OR EXISTS (SELECT FROM public.tokens t
                          WHERE t.id = g.token AND mailroom.fingerprint(t.secret) = g.fingerprint)
        FROM unnest(given) g LEFT JOIN (SELECT DISTINCT x.digest FROM unnest(added) x) a ON a.digest = g.digest
        ORDER BY g.id;
END $$;
COMMENT ON FUNCTION mailroom.record_events IS
    'Records events, given as an array of objects with the columns'' names (the fingerprint as 16 hex digits), and returns '
    'a row for each, in their order: whether it is new, and belongs to a mail of the ledger or of the queue. No address is '
    'kept of a mail whose token is deleted and whose rows of the ledger have none. New ones take effect: a permanent '
    'bounce or a complaint suppresses the address of the event and that of the ledger, a lost answer becomes known, a '
    'mail that SES could not render is rejected and pauses its action. Each new bounce and complaint notifies mailroom_events.';

CREATE FUNCTION mailroom.keep_unreadable(p_texts text[], p_reasons text[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    max_text CONSTANT integer := 65536;
    kept     integer;
BEGIN
    INSERT INTO mailroom.unreadable_events (text, reason, digest)
    SELECT DISTINCT ON (u.digest) left(u.text, max_text), left(u.reason, 1000), u.digest
    FROM (SELECT g.text, g.reason, g.n, sha256(convert_to(g.text, 'UTF8')) AS digest
          FROM unnest(p_texts, p_reasons) WITH ORDINALITY AS g (text, reason, n)) u
    ORDER BY u.digest, u.n
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS kept = ROW_COUNT;
    RETURN kept;
END $$;
COMMENT ON FUNCTION mailroom.keep_unreadable IS
    'Keeps messages of the queue of events that cannot be read, each with the reason, and returns how many are new.';

CREATE FUNCTION mailroom.fail_unrendered() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    late_settlement CONSTANT interval := '10 minutes';
    failed  mailroom.deliveries[];
    dead    bigint[];
    waiting mailroom.leases;
BEGIN
    IF NOT EXISTS (SELECT FROM mailroom.events e
                   WHERE e.kind = 'rendering_failed' AND e.received_at > clock_timestamp() - late_settlement) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('mailroom.settle_known', 0));
    WITH new AS (
        INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, result, provider, message_id, detail,
                                         worker, recipient, template, language, subject)
        SELECT DISTINCT ON (d.token, d.fingerprint) d.token, d.fingerprint, d.attempt, 'rejected', 'unrendered',
               d.provider, e.message_id, concat_ws(': ', 'SES could not render the mail', nullif(e.diagnostic, '')),
               d.worker, d.recipient, d.template, d.language, d.subject
        FROM mailroom.events e
        JOIN mailroom.deliveries d ON d.token = e.token AND d.fingerprint = e.fingerprint
             AND (d.outcome = 'sent' AND d.message_id = e.message_id
                  OR d.outcome = 'unknown' AND d.attempt = e.attempt AND d.at <= e.received_at)
        WHERE e.kind = 'rendering_failed' AND e.received_at > clock_timestamp() - late_settlement
          AND NOT EXISTS (SELECT FROM mailroom.deliveries o
                          WHERE o.token = d.token AND o.fingerprint = d.fingerprint AND o.id > d.id)
        ORDER BY d.token, d.fingerprint, d.id DESC, e.id
        RETURNING *)
    SELECT array_agg(n::mailroom.deliveries) INTO failed FROM new n;
    -- A mail that was sent before somebody resumed the action says nothing about its present template.
    UPDATE mailroom.actions k SET paused_at = clock_timestamp(), pause_reason = f.detail
    FROM (SELECT t.action, min(d.detail) AS detail
          FROM unnest(failed) d JOIN public.tokens t ON t.id = d.token AND mailroom.is_of(d.fingerprint, t.secret)
          WHERE NOT EXISTS (SELECT FROM mailroom.actions r JOIN mailroom.deliveries s ON s.token = d.token
                            WHERE r.action = t.action AND s.message_id = d.message_id AND s.at < r.resumed_at)
          GROUP BY t.action) f
    WHERE k.action = f.action AND k.paused_at IS NULL;
    -- A mail whose answer was lost waits in a lease. One that is locked or held by a worker is left for the next call.
    dead := ARRAY(
        SELECT DISTINCT d.token
        FROM mailroom.events e
        JOIN mailroom.deliveries d ON d.token = e.token AND d.fingerprint = e.fingerprint AND d.result = 'unrendered'
        JOIN public.tokens t ON t.id = d.token AND mailroom.is_of(d.fingerprint, t.secret)
        WHERE e.kind = 'rendering_failed' AND e.received_at > clock_timestamp() - late_settlement
          AND NOT EXISTS (SELECT FROM mailroom.deliveries o
                          WHERE o.token = d.token AND o.fingerprint = d.fingerprint AND o.id > d.id));
    FOR waiting IN SELECT * FROM mailroom.leases l
                   WHERE l.worker IN ('', 'paused') AND l.tokens && dead FOR UPDATE SKIP LOCKED LOOP
        PERFORM mailroom.settle(waiting.id, waiting.key, dead);
    END LOOP;
END $$;
COMMENT ON FUNCTION mailroom.fail_unrendered IS
    'Rejects the mails that SES could not render, by its events of the last ten minutes, and pauses their actions. Those '
    'that wait in a lease, since the answer was lost, leave it: all are dead letters.';

CREATE FUNCTION mailroom.events_of(p_tokens bigint[])
RETURNS TABLE (token bigint, kind text, message_id text, recipient text, at timestamptz, type text, subtype text,
               status text, diagnostic text, received_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT DISTINCT ON (e.at, e.id) p.id, e.kind, e.message_id, e.recipient, e.at, e.type, e.subtype, e.status,
           e.diagnostic, e.received_at
    FROM unnest(p_tokens) AS p (id)
    LEFT JOIN public.tokens t ON t.id = p.id
    JOIN LATERAL (
        SELECT x.* FROM mailroom.events x WHERE x.token = p.id AND mailroom.is_of(x.fingerprint, t.secret)
        UNION ALL
        -- One without tags that came before the ledger knew its message id.
        SELECT x.* FROM mailroom.deliveries d
        JOIN mailroom.events x ON x.message_id = d.message_id AND x.token IS NULL
        WHERE d.token = p.id AND mailroom.is_of(d.fingerprint, t.secret) AND d.message_id <> '') e ON true
    ORDER BY e.at, e.id
$$;
COMMENT ON FUNCTION mailroom.events_of IS 'Returns the events of these tokens'' mails, in the order of their own times.';

CREATE FUNCTION mailroom.event_counts(p_since interval, p_most integer)
RETURNS TABLE (delivered bigint, bounced bigint, bounced_for_good bigint, complained bigint, delayed bigint,
               rejected bigint, unrendered bigint, unreadable bigint, more boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
    SELECT count(*) FILTER (WHERE e.kind = 'delivered'), count(*) FILTER (WHERE e.kind = 'bounced'),
           count(*) FILTER (WHERE e.kind = 'bounced' AND e.type = 'permanent'),
           count(*) FILTER (WHERE e.kind = 'complained'),
           count(*) FILTER (WHERE e.kind = 'delayed'), count(*) FILTER (WHERE e.kind = 'rejected'),
           count(*) FILTER (WHERE e.kind = 'rendering_failed'),
           (SELECT count(*) FROM (SELECT FROM mailroom.unreadable_events u
                                  WHERE u.received_at > statement_timestamp() - p_since LIMIT p_most) u),
           count(*) >= p_most
    FROM (SELECT x.kind, x.type FROM mailroom.events x WHERE x.received_at > statement_timestamp() - p_since
          ORDER BY x.received_at DESC LIMIT p_most) e
$$;
COMMENT ON FUNCTION mailroom.event_counts IS
    'Counts the events that were received in the last p_since, by kind, and the messages that could not be read. It counts '
    'the newest p_most: more means that there may be others.';

CREATE FUNCTION mailroom.status_of(p_token bigint) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    named public.tokens;
    last  mailroom.deliveries;
    why   text;
BEGIN
    SELECT * INTO named FROM public.tokens t WHERE t.id = p_token;
    SELECT * INTO last FROM mailroom.deliveries d
    WHERE d.token = p_token AND mailroom.is_of(d.fingerprint, named.secret) ORDER BY d.id DESC LIMIT 1;
    IF named.id IS NULL AND last.id IS NULL THEN
        RETURN NULL;
    ELSIF last.outcome IN ('rejected', 'expired', 'skipped', 'suppressed')
          AND NOT EXISTS (SELECT FROM mailroom.deliveries d
                          WHERE d.token = p_token AND d.outcome = 'sent'
                            AND mailroom.is_of(d.fingerprint, named.secret)
                            AND NOT mailroom.unrendered(d.token, d.id)) THEN
        RETURN last.outcome;
    END IF;
    why := (SELECT CASE WHEN bool_or(e.kind = 'complained') THEN 'complained'
                        WHEN bool_or(e.kind = 'bounced' AND e.type <> 'transient') THEN 'bounced'
                        WHEN bool_or(e.kind = 'delivered') THEN 'delivered'
                        WHEN bool_or(e.kind = 'bounced') THEN 'bounced'
                        WHEN bool_or(e.kind = 'rejected') THEN 'rejected'
                        WHEN bool_or(e.kind = 'delayed') THEN 'delayed' END
            FROM mailroom.events_of(ARRAY[p_token]) e);
    IF why IS NOT NULL THEN
        RETURN why;
    ELSIF EXISTS (SELECT FROM mailroom.deliveries d
                  WHERE d.token = p_token AND d.outcome = 'sent' AND mailroom.is_of(d.fingerprint, named.secret)
                    AND NOT mailroom.unrendered(d.token, d.id)) THEN
        RETURN 'sent';
    END IF;
    why := mailroom.why_not_mailable(p_token);
    RETURN CASE WHEN why IS NULL THEN 'waiting' WHEN why IN ('expired', 'suppressed') THEN why ELSE 'skipped' END;
END $$;
COMMENT ON FUNCTION mailroom.status_of IS
    'Returns what became of a token''s mail: waiting (also for a retry), sent (SES took it), delivered, delayed, bounced, '
    'complained, suppressed (the address gets no mail), rejected, expired, skipped (for another reason that '
    '`mailroom why` tells); NULL for a token that does not exist. A transient bounce after a delivery, such as an '
    'out-of-office reply, leaves it delivered. A mail that a collector handed to a pipe, or whose rows of the ledger '
    'were pruned, is waiting until an event of it comes, then skipped once it is consumed, or expired.';

CREATE FUNCTION mailroom.suppression_of(p_email text)
RETURNS TABLE (hash bytea, address text, reason text, source text, at timestamptz, kind text, type text, subtype text,
               status text, diagnostic text, token bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT s.hash, s.address, s.reason, s.source, s.at, e.kind, e.type, e.subtype, e.status, e.diagnostic, e.token
    FROM mailroom.suppressions s LEFT JOIN mailroom.events e ON e.id = s.event
    WHERE s.hash = (SELECT mailroom.address_hash(p_email))
$$;
COMMENT ON FUNCTION mailroom.suppression_of IS
    'Returns the suppression of an address in any spelling, with what the event says that suppressed it, if there is one.';

-- What a claim checks more closely: tokens that are scheduled, expired, limited, suppressed, of an account whose status
-- does not fit, or have newer siblings.

CREATE TABLE mailroom.granted (
    token     bigint PRIMARY KEY,
    action    token_action NOT NULL,
    recipient text        NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX granted_recipient_idx ON mailroom.granted (recipient, action, at);
CREATE INDEX granted_at_idx ON mailroom.granted (at);

COMMENT ON TABLE mailroom.granted IS
    'The mails of actions with a limit that were handed out lately and not put off. A claim counts them for each '
    'recipient, and deletes old ones.';
COMMENT ON COLUMN mailroom.granted.token IS 'The token. It may have been deleted since.';
COMMENT ON COLUMN mailroom.granted.action IS 'Its action.';
COMMENT ON COLUMN mailroom.granted.recipient IS 'Its address, as mailroom.normal_address returns it.';
COMMENT ON COLUMN mailroom.granted.at IS 'When it was handed out first.';

-- A token that was ended before its time must not be mailed.
CREATE FUNCTION mailroom.renewable(p_token tokens) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    RETURN p_token.consumed_at IS NULL AND p_token.ended_at IS NULL AND p_token.wrong_codes < 5
       AND EXISTS (SELECT FROM mailroom.actions k
                   WHERE k.action = p_token.action AND k.renews
                     AND p_token.expires_at >= coalesce(p_token.send_at, p_token.created_at) + k.lifetime)
       AND NOT EXISTS (SELECT FROM mailroom.deliveries d
                       WHERE d.token = p_token.id AND d.outcome = 'sent'
                         AND mailroom.is_of(d.fingerprint, p_token.secret)
                         AND NOT mailroom.unrendered(d.token, d.id))
       AND NOT EXISTS (SELECT FROM public.tokens s
                       WHERE s.account = p_token.account AND s.action = p_token.action
                         AND s.consumed_at >= p_token.created_at)
       AND NOT (p_token.account IS NULL AND EXISTS (
                    SELECT FROM public.tokens s
                    WHERE lower(s.email) = lower(p_token.email) AND s.action = p_token.action
                      AND s.account IS NULL AND s.subject IS NOT DISTINCT FROM p_token.subject
                      AND s.user_table IS NOT DISTINCT FROM p_token.user_table
                      AND s.consumed_at >= p_token.created_at));
END $$;
COMMENT ON FUNCTION mailroom.renewable IS
    'Returns whether a token that expired before it was sent gets a new life: its action renews, it had its whole '
    'life, and no sibling was consumed meanwhile.';

-- Otherwise a token that expired while no mail could be sent would not have had its whole life, and be lost.
CREATE FUNCTION mailroom.after_longer_lifetime() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    UPDATE public.tokens t SET expires_at = coalesce(t.send_at, t.created_at) + NEW.lifetime
    WHERE t.action = NEW.action AND t.consumed_at IS NULL AND t.ended_at IS NULL
      AND t.expires_at = coalesce(t.send_at, t.created_at) + OLD.lifetime
      AND NOT EXISTS (SELECT FROM mailroom.deliveries d
                      WHERE d.token = t.id AND d.outcome = 'sent' AND mailroom.is_of(d.fingerprint, t.secret)
                        AND NOT mailroom.unrendered(d.token, d.id));
    RETURN NULL;
END $$;
COMMENT ON FUNCTION mailroom.after_longer_lifetime IS
    'Gives the longer lifetime of an action that renews to its tokens that were not sent yet.';

CREATE TRIGGER actions_after_longer_lifetime AFTER UPDATE OF lifetime ON mailroom.actions
    FOR EACH ROW WHEN (NEW.renews AND NEW.lifetime > OLD.lifetime)
    EXECUTE FUNCTION mailroom.after_longer_lifetime();

-- A mail must not arrive when its token has just expired. A life that somebody shortened counts to its end.
CREATE FUNCTION mailroom.is_over(p_token tokens, p_lifetime interval, p_now timestamptz) RETURNS boolean
LANGUAGE sql STABLE
RETURN (p_token).expires_at <= p_now
       OR (p_token).expires_at <= p_now + least(interval '2 seconds', p_lifetime / 10)
          AND (p_token).expires_at >= coalesce((p_token).send_at, (p_token).created_at) + p_lifetime;
COMMENT ON FUNCTION mailroom.is_over IS
    'Returns whether a token has expired, or has less left than two seconds and a tenth of its life.';

-- A newer one that is not sent for good, such as a limited one, takes no token's place, and none that waits in a
-- slower lane does. Only the next hundred are
-- looked at, so that thousands for one recipient hold up no claim.
CREATE FUNCTION mailroom.has_newer(p_token tokens) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
    looked_at CONSTANT integer := 100;
    newer     public.tokens;
    no_room   boolean;
BEGIN
    -- A mail that counts for the limit gives way to none that the limit would stop.
    SELECT EXISTS (SELECT FROM mailroom.granted g WHERE g.token = p_token.id)
       AND k.limit_mails <= (SELECT count(*) FROM mailroom.granted g
                             WHERE g.recipient = mailroom.normal_address(p_token.email) AND g.action = p_token.action
                               AND g.at > clock_timestamp() - k.limit_within)
    INTO no_room FROM mailroom.actions k WHERE k.action = p_token.action;
    FOR newer IN
        SELECT n.*
        FROM (SELECT x.* FROM public.tokens x
              WHERE x.account = p_token.account AND x.action = p_token.action AND x.id > p_token.id
              ORDER BY x.id LIMIT looked_at) n
        WHERE lower(n.email) = lower(p_token.email) AND n.login IS NOT DISTINCT FROM p_token.login
          AND n.subject IS NOT DISTINCT FROM p_token.subject AND n.data IS NOT DISTINCT FROM p_token.data
        UNION ALL
        SELECT n.*
        FROM (SELECT x.* FROM public.tokens x
              WHERE p_token.account IS NULL AND lower(x.email) = lower(p_token.email)
                AND x.action = p_token.action AND x.id > p_token.id
              ORDER BY x.id LIMIT looked_at) n
        WHERE n.account IS NULL AND n.user_table IS NOT DISTINCT FROM p_token.user_table
          AND n.login IS NOT DISTINCT FROM p_token.login
          AND n.subject IS NOT DISTINCT FROM p_token.subject AND n.data IS NOT DISTINCT FROM p_token.data
    LOOP
        IF newer.consumed_at IS NULL AND newer.wrong_codes < 5 AND newer.lane <= p_token.lane
           AND NOT (no_room AND NOT EXISTS (SELECT FROM mailroom.granted g WHERE g.token = newer.id))
           AND coalesce(newer.send_at, newer.created_at) >= coalesce(p_token.send_at, p_token.created_at)
           AND (newer.send_at IS NULL OR newer.send_at <= clock_timestamp())
           AND (newer.expires_at > clock_timestamp() OR mailroom.renewable(newer))
           AND NOT EXISTS (SELECT FROM mailroom.deliveries d
                           WHERE d.token = newer.id AND d.outcome IN ('skipped', 'suppressed', 'rejected', 'expired')
                             AND mailroom.is_of(d.fingerprint, newer.secret)) THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END $$;
COMMENT ON FUNCTION mailroom.has_newer IS
    'Returns whether a later token of the same action, recipient and data goes out in place of this one, or did.';

CREATE TYPE mailroom.doubt AS (
    token        bigint,
    action       token_action,
    recipient    text,
    fingerprint  bytea,
    verdict      text,
    expired      boolean,
    due_at       timestamptz,
    limit_mails  integer,
    limit_within interval
);

CREATE FUNCTION mailroom.screen(p_lane mailroom.lane, p_tokens bigint[], p_attempt integer, p_worker text,
                                p_waited_since timestamptz)
RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    renewed_as CONSTANT text := 'renewed: it expired before it was sent';
    put_off    CONSTANT interval := '5 minutes';
    suppressing CONSTANT boolean := EXISTS (SELECT FROM mailroom.suppressions);
    now        CONSTANT timestamptz := clock_timestamp();
    doubts     mailroom.doubt[];
    grants     bigint[];
    renewing   bigint[];
    renewed    bigint[];
    expired    bigint[];
BEGIN
    doubts := ARRAY(
        SELECT ROW(t.id, t.action, mailroom.normal_address(t.email), mailroom.fingerprint(t.secret), CASE
                       WHEN k.action IS NULL THEN 'unknown action'
                       WHEN t.send_at > now THEN 'scheduled'
                       WHEN mailroom.is_over(t, k.lifetime, now) AND NOT mailroom.renewable(t) THEN
                           CASE WHEN t.expires_at > p_waited_since THEN 'expired' ELSE 'never waited' END
                       WHEN NOT mailroom.fits(t.account, a.status, k.account_status) THEN
                           CASE a.status WHEN 'suspended' THEN 'suspended' ELSE 'ineligible' END
                       WHEN suppressing AND mailroom.suppressed(t.email) IS NOT NULL THEN 'suppressed'
                       WHEN mailroom.has_newer(t) THEN 'superseded'
                       WHEN k.paused_at IS NOT NULL THEN 'paused'
                       WHEN k.limit_mails IS NOT NULL
                            AND NOT EXISTS (SELECT FROM mailroom.granted g WHERE g.token = t.id) THEN 'limited'
                       ELSE 'passed' END,
                   mailroom.is_over(t, k.lifetime, now),
                   CASE WHEN t.send_at > now THEN t.send_at
                        WHEN t.expires_at > now THEN least(now + put_off, t.expires_at) ELSE now + put_off END,
                   k.limit_mails, k.limit_within)::mailroom.doubt
        FROM unnest(p_tokens) WITH ORDINALITY AS p (id, n)
        JOIN public.tokens t ON t.id = p.id
        LEFT JOIN public.accounts a ON a.id = t.account
        LEFT JOIN mailroom.actions k ON k.action = t.action
        ORDER BY p.n);

    -- The newest get what the limit allows.
    grants := ARRAY(
        SELECT w.token
        FROM (SELECT d.*, row_number() OVER (PARTITION BY d.recipient, d.action ORDER BY d.token DESC) AS place
              FROM unnest(doubts) d WHERE d.verdict = 'limited') w
        WHERE w.place <= w.limit_mails - (SELECT count(*) FROM mailroom.granted g
                                          WHERE g.recipient = w.recipient AND g.action = w.action
                                            AND g.at > now - w.limit_within));
    IF cardinality(grants) > 0 THEN
        INSERT INTO mailroom.granted AS g (token, action, recipient)
        SELECT d.token, d.action, d.recipient FROM unnest(doubts) d WHERE d.token = ANY (grants)
        ON CONFLICT (token) DO UPDATE SET action = excluded.action, recipient = excluded.recipient, at = excluded.at;
        DELETE FROM mailroom.granted g
        WHERE g.token = ANY (ARRAY(
            SELECT o.token FROM mailroom.granted o
            WHERE o.at < now - (SELECT max(k.limit_within) FROM mailroom.actions k)
            ORDER BY o.at LIMIT 2 * cardinality(grants) FOR UPDATE SKIP LOCKED));
        doubts := ARRAY(SELECT ROW(d.token, d.action, d.recipient, d.fingerprint,
                                   CASE WHEN d.token = ANY (grants) THEN 'passed' ELSE d.verdict END,
                                   d.expired, d.due_at, d.limit_mails, d.limit_within)::mailroom.doubt
                        FROM unnest(doubts) d);
    END IF;

    renewing := ARRAY(SELECT d.token FROM unnest(doubts) d WHERE d.verdict = 'passed' AND d.expired);
    renewed := '{}';
    IF cardinality(renewing) > 0 THEN
        -- A locked token is being ended at this moment, or soon free again: a claim waits for none.
        WITH free AS (
            SELECT t.id FROM public.tokens t
            WHERE t.id = ANY (renewing) AND t.consumed_at IS NULL AND t.ended_at IS NULL
              AND t.expires_at <= now + interval '2 seconds'
            FOR NO KEY UPDATE SKIP LOCKED
        ), lives AS (
            UPDATE public.tokens t SET send_at = now, expires_at = now + k.lifetime
            FROM mailroom.actions k
            WHERE t.id = ANY (ARRAY(SELECT f.id FROM free f)) AND k.action = t.action
            RETURNING t.id)
        SELECT coalesce(array_agg(l.id), '{}') INTO renewed FROM lives l;
        INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, detail, worker)
        SELECT d.token, d.fingerprint, p_attempt, 'retried', renewed_as, p_worker
        FROM unnest(doubts) d
        WHERE d.token = ANY (renewed)
          AND NOT EXISTS (SELECT FROM mailroom.deliveries e
                          WHERE e.token = d.token AND e.fingerprint = d.fingerprint AND e.detail = renewed_as);
    END IF;

    INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, detail, worker, recipient, subject)
    SELECT d.token, d.fingerprint, p_attempt,
           CASE d.verdict WHEN 'unknown action' THEN 'rejected' WHEN 'suppressed' THEN 'suppressed' ELSE 'skipped' END,
           CASE d.verdict WHEN 'unknown action'
               THEN format('mailroom.actions has no row for the action %s; run `mailroom actions apply`', d.action)
               WHEN 'suppressed' THEN mailroom.suppressed(t.email)
               ELSE d.verdict END, p_worker, t.email, coalesce(t.subject, '')
    FROM unnest(doubts) d JOIN public.tokens t ON t.id = d.token
    WHERE d.verdict IN ('unknown action', 'suspended', 'ineligible', 'suppressed', 'superseded', 'limited');
    expired := ARRAY(SELECT d.token FROM unnest(doubts) d WHERE d.verdict = 'expired');
    IF cardinality(expired) > 0 THEN
        PERFORM mailroom.record_skipped(expired, p_attempt, p_worker);
    END IF;

    INSERT INTO mailroom.leases (lane, tokens, worker, generation, due_at)
    SELECT p_lane, array_agg(s.token ORDER BY s.token), s.worker, 0, s.due_at
    FROM (SELECT d.token, d.verdict AS worker, d.due_at FROM unnest(doubts) d
          WHERE d.verdict IN ('scheduled', 'paused')
          UNION ALL
          SELECT r.token, '', now + interval '1 second' FROM unnest(renewing) r (token)
          WHERE r.token <> ALL (renewed)) s
    GROUP BY s.worker, s.due_at;

    RETURN ARRAY(SELECT d.token FROM unnest(doubts) d
                 WHERE d.verdict = 'passed' AND (NOT d.expired OR d.token = ANY (renewed)));
END $$;
COMMENT ON FUNCTION mailroom.screen IS
    'Returns which of these tokens of a lane go out now. Of the others, scheduled ones and those of a paused action go '
    'into leases, and the rest into the ledger: expired, suspended or ineligible (the account''s status), suppressed (the '
    'address gets no mail), superseded (a newer one goes out), limited (the recipient had enough), or rejected '
    '(an action without a row). An expired token of an action that renews gets a new life. What had expired before '
    'p_waited_since leaves no row.';

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

-- The rate of a transport that all workers share: a token bucket as one timestamp (the generic cell rate algorithm,
-- ITU-T I.371), which adapts to the provider's throttles. The caller passes the bucket's policy.

CREATE TABLE mailroom.rates (
    transport  text        PRIMARY KEY,
    free_at    timestamptz NOT NULL DEFAULT '-infinity',
    rate       double precision NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10);

COMMENT ON TABLE mailroom.rates IS
    'The rate of each transport, which all workers share: a token bucket as one timestamp.';
COMMENT ON COLUMN mailroom.rates.transport IS 'The transport.';
COMMENT ON COLUMN mailroom.rates.free_at IS 'The time up to which the rate is used by earlier charges.';
COMMENT ON COLUMN mailroom.rates.rate IS 'Recipients a second at present.';
COMMENT ON COLUMN mailroom.rates.changed_at IS 'When the rate was last computed.';

CREATE FUNCTION mailroom.reserve(p_transport text, p_recipients integer, p_throttled integer, p_ceiling double precision,
                                 p_is_known boolean, p_longest_s double precision,
                                 p_burst_s double precision, p_doubled_in_s double precision,
                                 p_least_factor double precision, p_lowest_share double precision)
RETURNS TABLE (wait_s double precision, rate double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    longest_s CONSTANT double precision := 15;  -- a lease's time
    bucket    mailroom.rates;
    now       timestamptz;
    passed_s  double precision;
    charge_s  double precision;
    needed_s  double precision;
BEGIN
    IF p_recipients < 1 OR p_ceiling <= 0 OR p_ceiling = 'NaN' THEN
        RAISE EXCEPTION 'mailroom: a charge needs at least one recipient, and a rate above zero'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT r.* INTO bucket FROM mailroom.rates r WHERE r.transport = p_transport FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO mailroom.rates (transport, rate) VALUES (p_transport, p_ceiling) ON CONFLICT DO NOTHING;
        SELECT r.* INTO bucket FROM mailroom.rates r WHERE r.transport = p_transport FOR NO KEY UPDATE;
    END IF;
    IF NOT p_is_known THEN
        p_ceiling := greatest(p_ceiling, bucket.rate);
    END IF;
    now := clock_timestamp();
    -- Not below zero, since the clock may have been set back; ten doublings are more than the rate ever needs.
    passed_s := greatest(extract(epoch FROM now - bucket.changed_at), 0);
    bucket.rate := least(bucket.rate * power(2, least(passed_s / p_doubled_in_s, 10)), p_ceiling);
    IF p_throttled > 0 THEN
        bucket.rate := greatest(bucket.rate - p_throttled, bucket.rate * p_least_factor,
                                p_ceiling * p_lowest_share);
    END IF;
    charge_s := p_recipients / bucket.rate;
    -- No charge reaches further ahead than the longest wait and itself. A clock that was set back could have put
    -- one there.
    bucket.free_at := greatest(now, least(bucket.free_at,
                                          now + (longest_s + 2 * charge_s) * interval '1 second'));
    needed_s := greatest(0, extract(epoch FROM bucket.free_at - now)::double precision
                            + charge_s - greatest(p_burst_s, charge_s));
    IF needed_s <= least(p_longest_s, longest_s) THEN
        bucket.free_at := bucket.free_at + charge_s * interval '1 second';
    END IF;
    UPDATE mailroom.rates r SET free_at = bucket.free_at, rate = bucket.rate, changed_at = now
    WHERE r.transport = p_transport;
    RETURN QUERY SELECT needed_s, bucket.rate;
END $$;
COMMENT ON FUNCTION mailroom.reserve IS
    'Charges recipients to the rate of a transport that all workers share, and returns the seconds to wait before the call and '
    'the rate at present. If the wait is longer than p_longest_s, or than 15 s, nothing is charged: ask again. '
    'The bucket holds p_burst_s seconds of the rate. The rate doubles in p_doubled_in_s seconds, up to p_ceiling. '
    'A ceiling that is not known (p_is_known) lowers no rate that another worker reached. '
    'Each of p_throttled, the recipients that the provider throttled since the last charge, lowers it by one a '
    'second; all of them multiply it by p_least_factor at the lowest, down to p_lowest_share of p_ceiling.';

-- The workers of `mailroom run`, each of which reports every few seconds.

-- Rows are updated in place: no index holds what changes, and the pages have room.
CREATE TABLE mailroom.workers (
    worker        text PRIMARY KEY,
    version       text        NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    trouble       text        NOT NULL DEFAULT '',
    trouble_since timestamptz,
    events_trouble       text NOT NULL DEFAULT '',
    events_trouble_since timestamptz
) WITH (fillfactor = 10);

COMMENT ON TABLE mailroom.workers IS 'The workers of `mailroom run`, each of which reports every few seconds.';
COMMENT ON COLUMN mailroom.workers.worker IS 'The worker''s name, as in leases and the ledger.';
COMMENT ON COLUMN mailroom.workers.version IS 'The worker''s version of Mailroom.';
COMMENT ON COLUMN mailroom.workers.started_at IS 'When it first reported.';
COMMENT ON COLUMN mailroom.workers.seen_at IS 'When it last reported.';
COMMENT ON COLUMN mailroom.workers.trouble IS 'What keeps it from sending; empty if nothing does.';
COMMENT ON COLUMN mailroom.workers.trouble_since IS 'When that began.';
COMMENT ON COLUMN mailroom.workers.events_trouble IS
    'What keeps it from reading SES''s events; empty if nothing does, or if it reads none.';
COMMENT ON COLUMN mailroom.workers.events_trouble_since IS 'When that began.';

CREATE FUNCTION mailroom.heartbeat(p_worker text, p_version text, p_trouble text, p_events_trouble text DEFAULT '')
RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT mailroom.fail_unrendered();
    INSERT INTO mailroom.workers AS w (worker, version, trouble, trouble_since, events_trouble, events_trouble_since)
    VALUES (p_worker, p_version, p_trouble, CASE WHEN p_trouble <> '' THEN clock_timestamp() END,
            p_events_trouble, CASE WHEN p_events_trouble <> '' THEN clock_timestamp() END)
    ON CONFLICT (worker) DO UPDATE
    SET version = excluded.version, seen_at = clock_timestamp(), trouble = excluded.trouble,
        trouble_since = CASE WHEN excluded.trouble <> '' THEN coalesce(w.trouble_since, excluded.trouble_since) END,
        events_trouble = excluded.events_trouble,
        events_trouble_since = CASE WHEN excluded.events_trouble <> ''
                                    THEN coalesce(w.events_trouble_since, excluded.events_trouble_since) END;
    DELETE FROM mailroom.workers w WHERE w.worker IN (
        SELECT o.worker FROM mailroom.workers o WHERE o.seen_at < clock_timestamp() - interval '1 day'
        FOR UPDATE SKIP LOCKED);
$$;
COMMENT ON FUNCTION mailroom.heartbeat IS
    'Reports that a worker is alive, and what keeps it from sending and from reading events (empty if nothing does). Removes workers '
    'that have not reported for a day. Rejects mails that SES could not render, and were recorded after its event.';

CREATE FUNCTION mailroom.leave(p_worker text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    DELETE FROM mailroom.workers w WHERE w.worker = p_worker
$$;
COMMENT ON FUNCTION mailroom.leave IS 'Removes a worker that has stopped in good order.';

CREATE FUNCTION mailroom.recent_workers()
RETURNS TABLE (worker text, version text, alive boolean, started_at timestamptz, seen_at timestamptz,
               up double precision, silent double precision, leases bigint, tokens bigint,
               trouble text, trouble_since timestamptz, events_trouble text, events_trouble_since timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT w.worker, w.version, w.seen_at > n.now - interval '15 seconds', w.started_at, w.seen_at,
           extract(epoch FROM n.now - w.started_at)::double precision,
           extract(epoch FROM n.now - w.seen_at)::double precision,
           coalesce(h.leases, 0), coalesce(h.tokens, 0), w.trouble, w.trouble_since, w.events_trouble,
           w.events_trouble_since
    FROM (SELECT clock_timestamp() AS now) n
    JOIN mailroom.workers w ON w.seen_at > n.now - interval '1 hour'
    LEFT JOIN (SELECT l.worker, count(*) AS leases, sum(cardinality(l.tokens))::bigint AS tokens
               FROM mailroom.leases l GROUP BY l.worker) h ON h.worker = w.worker
    ORDER BY w.started_at, w.worker
$$;
COMMENT ON FUNCTION mailroom.recent_workers IS
    'Returns the workers that reported in the last hour, the oldest first: which are alive (reported in the '
    'last 15 s), what they hold, and what keeps them from sending and from reading events. up and silent are in seconds.';

-- The end of each migration: what it is, and who may call what. `mailroom roles` grants the rest to roles.

CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 3;
COMMENT ON FUNCTION mailroom.schema_version IS
    'Returns the number of the last migration. Mailroom''s programs compare it with the one that they need.';

SELECT mailroom.finish_migration();

-- A trigger does not check who may call its function, but any user that may can attach it to a table.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom FROM PUBLIC;
-- The user that inserts into tokens calls the defaults of its columns, its trigger's condition and its check.
GRANT EXECUTE ON FUNCTION mailroom.random_secret, mailroom.random_code, mailroom.is_sound, mailroom.is_incomplete TO PUBLIC;
