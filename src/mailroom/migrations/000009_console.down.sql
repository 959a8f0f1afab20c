DROP FUNCTION mailroom.recent_deliveries(text, bigint, bigint, integer);
DROP FUNCTION mailroom.ledger_ends();
DROP FUNCTION mailroom.traffic(interval, integer, integer);
DROP FUNCTION mailroom.oldest_age(text, integer);
