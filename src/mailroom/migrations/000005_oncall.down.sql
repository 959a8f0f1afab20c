DROP FUNCTION mailroom.prune_tokens(bigint, interval, integer);
DROP FUNCTION mailroom.prune_deliveries(interval, integer);
DROP FUNCTION mailroom.deliveries_of(bigint[]);
DROP FUNCTION mailroom.tokens_of(text, text, integer);
DROP FUNCTION mailroom.paused(text);
DROP FUNCTION mailroom.overview(text);
