DROP FUNCTION mailroom.consume(bytea, text, text);
