DROP FUNCTION mailroom.age(bigint);
DROP FUNCTION mailroom.pulse(text, integer);
