DROP FUNCTION mailroom.reserve(text, integer, double precision, double precision);

-- As it was before.
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

REVOKE EXECUTE ON FUNCTION mailroom.reserve(text, integer, double precision) FROM PUBLIC;
