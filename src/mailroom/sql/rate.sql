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
