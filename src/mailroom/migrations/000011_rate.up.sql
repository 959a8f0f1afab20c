-- A charge that would have to be waited for too long is not made. Before, whoever could not wait left its
-- charge behind, and when all workers' calls at once were more than the rate lets through in a lease's
-- time, nobody's wait was short enough ever again.

DROP FUNCTION mailroom.reserve(text, integer, double precision);

-- Charge recipients, and say how long to wait before the call, in seconds, and the rate at present. A wait
-- longer than p_longest_s, or than a lease's time, means: not now. Nothing is charged then; ask again.
CREATE FUNCTION mailroom.reserve(p_queue text, p_recipients integer, p_ceiling double precision,
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

REVOKE EXECUTE ON FUNCTION mailroom.reserve(text, integer, double precision, double precision) FROM PUBLIC;
