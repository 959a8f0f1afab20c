-- Made from src/mailroom/sql as it was then. A released migration never changes.

SELECT pg_catalog.set_config('search_path', pg_catalog.format('%s, pg_temp', mailroom.user_schema()), true),
       pg_catalog.set_config('check_function_bodies', 'off', true);

DROP FUNCTION mailroom.record_skipped;
DROP FUNCTION mailroom.why_not_mailable;
DROP FUNCTION mailroom.not_mailable;
DROP FUNCTION mailroom.unrendered;
DROP TRIGGER deliveries_insert_only ON mailroom.deliveries;
DROP FUNCTION mailroom.refuse_update;
DROP FUNCTION mailroom.is_of;
DROP FUNCTION mailroom.fingerprint;
DROP TABLE mailroom.deliveries;
DROP FUNCTION mailroom.normal_address;
DROP FUNCTION mailroom.unicode_address;
DROP FUNCTION mailroom.plain_letters;
DROP FUNCTION mailroom.unicode_label;

-- The end of each migration: what it is, and who may call what. `mailroom roles` grants the rest to roles.

CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1;
COMMENT ON FUNCTION mailroom.schema_version IS
    'Returns the number of the last migration. Mailroom''s programs compare it with the one that they need.';

SELECT mailroom.finish_migration();

-- A trigger does not check who may call its function, but any user that may can attach it to a table.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom FROM PUBLIC;
-- The user that inserts into tokens calls the defaults of its columns, its trigger's condition and its check.
GRANT EXECUTE ON FUNCTION mailroom.random_secret, mailroom.random_code, mailroom.is_sound, mailroom.is_incomplete TO PUBLIC;
