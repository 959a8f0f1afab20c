-- Made from src/mailroom/sql as it was then. A released migration never changes.

SELECT pg_catalog.set_config('search_path', pg_catalog.format('%s, pg_temp', mailroom.user_schema()), true),
       pg_catalog.set_config('check_function_bodies', 'off', true);

DROP FUNCTION mailroom.recent_workers;
DROP FUNCTION mailroom.leave;
DROP FUNCTION mailroom.heartbeat;
DROP TABLE mailroom.workers;
DROP FUNCTION mailroom.reserve;
DROP TABLE mailroom.rates;
DROP FUNCTION mailroom.next_due;
DROP FUNCTION mailroom.claim;
DROP FUNCTION mailroom.fields_of;
DROP FUNCTION mailroom.life_s;
DROP TYPE mailroom.message;
DROP FUNCTION mailroom.screen;
DROP TYPE mailroom.doubt;
DROP FUNCTION mailroom.has_newer;
DROP FUNCTION mailroom.is_over;
DROP TRIGGER actions_after_longer_lifetime ON mailroom.actions;
DROP FUNCTION mailroom.after_longer_lifetime;
DROP FUNCTION mailroom.renewable;
DROP TABLE mailroom.granted;
DROP FUNCTION mailroom.suppression_of;
DROP FUNCTION mailroom.status_of;
DROP FUNCTION mailroom.event_counts;
DROP FUNCTION mailroom.events_of;
DROP FUNCTION mailroom.fail_unrendered;
DROP FUNCTION mailroom.keep_unreadable;
DROP FUNCTION mailroom.record_events;
DROP FUNCTION mailroom.known_answers;
DROP FUNCTION mailroom.settle_known;
DROP TABLE mailroom.unreadable_events;
DROP TRIGGER events_insert_only ON mailroom.events;
DROP TABLE mailroom.events;
DROP FUNCTION mailroom.list_suppressions;
DROP FUNCTION mailroom.unsuppress;
DROP FUNCTION mailroom.suppress;
DROP FUNCTION mailroom.suppressed_among;
DROP FUNCTION mailroom.suppressed;
DROP TABLE mailroom.suppressions;
DROP FUNCTION mailroom.address_hash;
DROP TABLE mailroom.hash_key;
DROP FUNCTION mailroom.release;
DROP FUNCTION mailroom.renew;
DROP FUNCTION mailroom.record;
DROP FUNCTION mailroom.settle;
DROP TABLE mailroom.leases;
DROP FUNCTION mailroom.restart_cursor;
DROP FUNCTION mailroom.with_own_running;
DROP TRIGGER tokens_keep_lane ON tokens;
DROP FUNCTION mailroom.keep_lane;
DROP TABLE mailroom.cursors;
DROP TABLE jobs;
DROP TYPE job_type;

-- The end of each migration: what it is, and who may call what. `mailroom roles` grants the rest to roles.

CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 2;
COMMENT ON FUNCTION mailroom.schema_version IS
    'Returns the number of the last migration. Mailroom''s programs compare it with the one that they need.';

SELECT mailroom.finish_migration();

-- A trigger does not check who may call its function, but any user that may can attach it to a table.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom FROM PUBLIC;
-- The user that inserts into tokens calls the defaults of its columns, its trigger's condition and its check.
GRANT EXECUTE ON FUNCTION mailroom.random_secret, mailroom.random_code, mailroom.is_sound, mailroom.is_incomplete TO PUBLIC;
