-- Made from src/mailroom/sql as it was then. A released migration never changes.

DO $$
DECLARE
    tables text := (SELECT string_agg(a.user_table::text, ', ') FROM mailroom.adopted a);
BEGIN
    IF tables IS NOT NULL THEN
        RAISE EXCEPTION 'mailroom: tables of users are adopted: %', tables
            USING ERRCODE = 'object_in_use', HINT = 'Run `mailroom adopt TABLE --drop` for each first.';
    END IF;
END $$;
SELECT pg_catalog.set_config('search_path', pg_catalog.format('%s, pg_temp', mailroom.user_schema()), true),
       pg_catalog.set_config('check_function_bodies', 'off', true);

DROP FUNCTION mailroom.adopted_count;
DROP FUNCTION mailroom.adoption_faults;
DROP FUNCTION mailroom.facts_query;
DROP FUNCTION mailroom.adopted_below;
DROP FUNCTION mailroom.lacks_activation;
DROP FUNCTION mailroom.adopted_table;
DROP FUNCTION mailroom.activate_user;
DROP FUNCTION mailroom.lock_user;
DROP FUNCTION mailroom.owners_function;
DROP FUNCTION mailroom.end_users;
DROP FUNCTION mailroom.users_changed;
DROP FUNCTION mailroom.request_activations;
DROP FUNCTION mailroom.end_unfit;
DROP FUNCTION mailroom.user_fault;
DROP FUNCTION mailroom.mailable_locale;
DROP FUNCTION mailroom.mailable_text;
DROP FUNCTION mailroom.adoption_of;
DROP FUNCTION mailroom.user_facts;
DROP TYPE mailroom.user_change;
DROP TYPE mailroom.user_state;
DROP TYPE mailroom.adopted_user;
DROP TABLE mailroom.adopted;
DROP FUNCTION mailroom.take_over;
DROP FUNCTION mailroom.misplaced_tokens;
DROP FUNCTION mailroom.forget;
DROP FUNCTION mailroom.names_address;
DROP FUNCTION mailroom.without_addresses;
DROP FUNCTION mailroom.prune_tokens;
DROP FUNCTION mailroom.prune_events;
DROP FUNCTION mailroom.prune_deliveries;
DROP FUNCTION mailroom.recent_deliveries;
DROP FUNCTION mailroom.ledger_ends;
DROP FUNCTION mailroom.traffic;
DROP FUNCTION mailroom.drop_dead;
DROP FUNCTION mailroom.retry_dead;
DROP FUNCTION mailroom.rejected_as;
DROP FUNCTION mailroom.lock_dead_letters;
DROP FUNCTION mailroom.dead_count;
DROP FUNCTION mailroom.dead_letters;
DROP FUNCTION mailroom.is_dead;
DROP FUNCTION mailroom.deliveries_of;
DROP FUNCTION mailroom.last_tokens;
DROP FUNCTION mailroom.tokens_of;
DROP FUNCTION mailroom.written_about;
DROP FUNCTION mailroom.paused_actions;
DROP FUNCTION mailroom.resume;
DROP FUNCTION mailroom.pause;
DROP FUNCTION mailroom.paused;
DROP FUNCTION mailroom.pulse;
DROP FUNCTION mailroom.overview;
DROP FUNCTION mailroom.backlog;
DROP FUNCTION mailroom.waiting;
DROP FUNCTION mailroom.sendable;

-- The end of each migration: what it is, and who may call what. `mailroom roles` grants the rest to roles.

CREATE OR REPLACE FUNCTION mailroom.schema_version() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 3;
COMMENT ON FUNCTION mailroom.schema_version IS
    'Returns the number of the last migration. Mailroom''s programs compare it with the one that they need.';

SELECT mailroom.finish_migration();

-- A trigger does not check who may call its function, but any user that may can attach it to a table.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA mailroom FROM PUBLIC;
-- The user that inserts into tokens calls the defaults of its columns, its trigger's condition and its check.
GRANT EXECUTE ON FUNCTION mailroom.random_secret, mailroom.random_code, mailroom.is_sound, mailroom.is_incomplete TO PUBLIC;
