DROP FUNCTION mailroom.workers_of(text);
DROP FUNCTION mailroom.leave(text);
DROP FUNCTION mailroom.heartbeat(text, text, text, text);
DROP TABLE mailroom.workers;
DROP FUNCTION mailroom.drop_dead(bigint[], text, text);
DROP FUNCTION mailroom.retry_dead(text, text, bigint[], boolean, text, text);
DROP FUNCTION mailroom.renew_dead(bigint, text, text);
DROP FUNCTION mailroom.lock_dead_letters();
DROP FUNCTION mailroom.dead_count(text, interval, integer);
DROP FUNCTION mailroom.dead_letters(text, interval, timestamptz, bigint, integer);
DROP FUNCTION mailroom.is_dead(bigint);
DROP INDEX mailroom.deliveries_rejected_idx;

-- As they were before.
COMMENT ON COLUMN mailroom.deliveries.result IS
    'The class of the transport''s answer: sent, rejected, transient, throttled, unknown, failed, paused.';

-- Settle a lease with the outcomes of an attempt. Sent and rejected tokens leave it; the others stay,
-- held by nobody and due after p_retry_ms, or at the first of their expiries if that comes before. A
-- token that failed p_retry_limit times without a stated reason is rejected.
--
-- The outcomes are written down whether or not the lease is still this generation's; settled says
-- whether it was. A token with an empty result was not tried, and leaves no row.
CREATE OR REPLACE FUNCTION mailroom.record(p_lease bigint, p_generation integer, p_worker text, p_provider text,
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
