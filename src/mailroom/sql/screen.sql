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
