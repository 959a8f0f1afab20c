-- What a role of mailroom's could do and should not, and what consuming tells besides.

-- A column's default runs with the search_path of whoever inserts. These two name what they call without a
-- schema; as text they would call whatever the application has under these names, and a token's secret would
-- be of its choice. A body in SQL's own form is bound once, here.
CREATE OR REPLACE FUNCTION mailroom.random_secret() RETURNS bytea
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN sha256(uuid_send(gen_random_uuid())
           || uuid_send(gen_random_uuid())
           || uuid_send(gen_random_uuid()));

CREATE OR REPLACE FUNCTION mailroom.random_code() RETURNS text
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN lpad((('x' || left(replace(gen_random_uuid()::text, '-', ''), 12))::bit(48)::bigint
             % 100000)::text, 5, '0');

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
    IF p_recipients < 1 OR p_ceiling <= 0 OR p_ceiling = 'NaN' THEN
        RAISE EXCEPTION 'mailroom: a charge needs at least one recipient, and a rate above zero'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT r.* INTO bucket FROM mailroom.rates r WHERE r.job::text = p_queue FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO mailroom.rates (job, rate)
        SELECT j.job_type, p_ceiling FROM public.jobs j WHERE j.job_type::text = p_queue
        ON CONFLICT DO NOTHING;
        SELECT r.* INTO bucket FROM mailroom.rates r WHERE r.job::text = p_queue FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'mailroom: unknown queue "%"', p_queue
                USING ERRCODE = 'undefined_object', HINT = 'The queues are the rows of the table jobs.';
        END IF;
    END IF;
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

-- An age below zero would be a time to come, and delete tokens that are alive: it counts as zero.
CREATE OR REPLACE FUNCTION mailroom.prune_deliveries(p_older_than interval, p_batch integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH deleted AS (
        DELETE FROM mailroom.deliveries d
        WHERE d.id = ANY (ARRAY(
            SELECT o.id FROM mailroom.deliveries o
            WHERE o.at < statement_timestamp() - greatest(p_older_than, '0')
            ORDER BY o.at LIMIT p_batch FOR UPDATE SKIP LOCKED))
        RETURNING d.id)
    SELECT count(*) FROM deleted
$$;

-- Look at the p_batch tokens that follow p_after and delete those that have been expired or consumed
-- for longer and are in no lease. Gives back the last one looked at, NULL at the end, and how many
-- were deleted. A token that somebody has locked is left for the next time.
CREATE OR REPLACE FUNCTION mailroom.prune_tokens(p_after bigint, p_older_than interval, p_batch integer)
RETURNS TABLE (last_seen bigint, deleted bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH seen AS (
        SELECT t.id FROM public.tokens t WHERE t.id > p_after ORDER BY t.id LIMIT p_batch
    ), old AS (
        SELECT t.id FROM public.tokens t
        WHERE t.id = ANY (ARRAY(SELECT s.id FROM seen s))
          AND (t.expires_at < statement_timestamp() - greatest(p_older_than, '0')
               OR t.consumed_at < statement_timestamp() - greatest(p_older_than, '0'))
          AND t.id NOT IN (SELECT unnest(l.tokens) FROM mailroom.leases l)
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM public.tokens t WHERE t.id = ANY (ARRAY(SELECT o.id FROM old o)) RETURNING t.id)
    SELECT (SELECT max(s.id) FROM seen s), (SELECT count(*) FROM gone)
$$;

-- Consuming tells the token's id as well, by which an application finds what it keeps for it. A function whose
-- result changes is made anew; whoever might call it before still may.
ALTER FUNCTION mailroom.consume(bytea, text, text) RENAME TO consume_before;

-- The outcome is one of: consumed, unknown, used (consumed before), exhausted (five wrong codes),
-- expired (or ended by a consumed sibling), suspended, ineligible (the account's status does not
-- fit the action), wrong_code. A wrong code is counted: let the transaction commit.
--
-- The account's row is locked first, so that of two siblings consumed at once one wins, and a
-- suspension either comes first and is seen or comes after.
CREATE FUNCTION mailroom.consume(p_secret bytea, p_action text, p_code text DEFAULT NULL)
RETURNS TABLE (outcome text, account bigint, codes_left integer, token bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    owner   public.accounts;
    rule    mailroom.actions;
    refused public.tokens;
BEGIN
    SELECT a.* INTO owner FROM public.accounts a
    WHERE a.id = (SELECT t.account FROM public.tokens t
                  WHERE t.secret = p_secret AND t.action::text = p_action)
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'unknown', NULL::bigint, NULL::integer, NULL::bigint;
        RETURN;
    END IF;
    SELECT * INTO rule FROM mailroom.actions k WHERE k.action::text = p_action;

    UPDATE public.tokens t SET consumed_at = clock_timestamp()
    WHERE t.secret = p_secret AND t.action = rule.action
      AND t.consumed_at IS NULL AND t.expires_at > clock_timestamp() AND t.wrong_codes < 5
      AND owner.status = rule.account_status
      AND (NOT rule.needs_code OR t.code = p_code)
    RETURNING t.id INTO token;
    IF FOUND THEN
        RETURN QUERY SELECT 'consumed', owner.id, NULL::integer, token;
        RETURN;
    END IF;

    SELECT * INTO refused FROM public.tokens t WHERE t.secret = p_secret;
    outcome := CASE
        WHEN refused.consumed_at IS NOT NULL THEN 'used'
        WHEN refused.wrong_codes >= 5 THEN 'exhausted'
        WHEN refused.expires_at <= clock_timestamp() THEN 'expired'
        WHEN owner.status = 'suspended' THEN 'suspended'
        WHEN owner.status <> rule.account_status THEN 'ineligible'
        ELSE 'wrong_code' END;
    IF outcome = 'wrong_code' THEN
        UPDATE public.tokens t SET wrong_codes = t.wrong_codes + 1 WHERE t.id = refused.id
        RETURNING 5 - t.wrong_codes INTO codes_left;
        IF codes_left = 0 THEN
            outcome := 'exhausted';
        END IF;
    END IF;
    account := owner.id;
    token := refused.id;
    RETURN NEXT;
END $$;

REVOKE EXECUTE ON FUNCTION mailroom.consume(bytea, text, text) FROM PUBLIC;
DO $$
DECLARE
    consumer regrole;
BEGIN
    FOR consumer IN
        SELECT a.grantee FROM pg_proc p, aclexplode(p.proacl) a
        WHERE p.oid = 'mailroom.consume_before'::regproc AND a.grantee NOT IN (0, p.proowner)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION mailroom.consume(bytea, text, text) TO %s', consumer);
    END LOOP;
END $$;
DROP FUNCTION mailroom.consume_before(bytea, text, text);
