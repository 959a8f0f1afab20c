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
