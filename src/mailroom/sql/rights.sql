-- The end of each migration: what it is, and who may call what. `mailroom roles` grants the rest to roles.

CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 4;
COMMENT ON FUNCTION mailroom.schema_version IS
    'Returns the number of the last migration. Mailroom''s programs compare it with the one that they need.';

SELECT mailroom.finish_migration();

-- A trigger does not check who may call its function, but any user that may can attach it to a table.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom FROM PUBLIC;
-- The user that inserts into tokens calls the defaults of its columns, its trigger's condition and its check.
GRANT EXECUTE ON FUNCTION mailroom.random_secret, mailroom.random_code, mailroom.is_sound, mailroom.is_incomplete TO PUBLIC;
