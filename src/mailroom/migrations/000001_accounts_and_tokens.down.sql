-- Made from src/mailroom/sql as it was then. A released migration never changes.

SELECT pg_catalog.set_config('search_path', pg_catalog.format('%s, pg_temp', mailroom.user_schema()), true),
       pg_catalog.set_config('check_function_bodies', 'off', true);

DROP TRIGGER tokens_ring ON tokens;
DROP FUNCTION mailroom.ring;
DROP FUNCTION mailroom.request_sleep;
DROP FUNCTION mailroom.bell_lock;
DROP FUNCTION mailroom.sleep_lock;
DROP TRIGGER tokens_after_consumption ON tokens;
DROP FUNCTION mailroom.after_consumption;
DROP FUNCTION mailroom.consume_code;
DROP FUNCTION mailroom.consume;
DROP FUNCTION mailroom.consume_locked;
DROP FUNCTION mailroom.lock_recipient;
DROP FUNCTION mailroom.siblings;
DROP TRIGGER accounts_after_suspension ON accounts;
DROP FUNCTION mailroom.after_suspension;
DROP TRIGGER accounts_after_address_change ON accounts;
DROP FUNCTION mailroom.after_address_change;
DROP TRIGGER accounts_issue_activation ON accounts;
DROP FUNCTION mailroom.issue_activation;
DROP FUNCTION mailroom.send;
DROP TRIGGER tokens_prepare ON tokens;
DROP FUNCTION mailroom.prepare_token;
DROP FUNCTION mailroom.check_data;
DROP FUNCTION mailroom.is_incomplete;
ALTER TABLE tokens DROP CONSTRAINT tokens_sound;
DROP FUNCTION mailroom.is_sound;
DROP TABLE tokens;
DROP FUNCTION mailroom.random_code;
DROP FUNCTION mailroom.random_secret;
DROP FUNCTION mailroom.finish_migration;
DROP FUNCTION mailroom.user_schema;
DROP FUNCTION mailroom.known_actions;
DROP FUNCTION mailroom.fits;
DROP TABLE mailroom.actions;
DROP TYPE mailroom.lane;
DROP TYPE token_action;
DROP TRIGGER accounts_keep_status_times_update ON accounts;
DROP TRIGGER accounts_keep_status_times_insert ON accounts;
DROP FUNCTION mailroom.keep_status_times;
DROP TABLE accounts;
DROP TYPE account_status;
DROP FUNCTION mailroom.schema_version;
DROP SCHEMA mailroom;
