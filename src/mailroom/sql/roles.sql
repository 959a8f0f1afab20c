-- Roles with only the rights that they need. `mailroom roles` prints this file:
--
--     mailroom roles | psql "$MAILROOM_DATABASE_URL"
--
-- Run it as the owner of Mailroom's schema, with the right to create roles (CREATEROLE) unless they exist, and again
-- after each `mailroom migrate up`. If USAGE on the schema of the tables was revoked from PUBLIC, its owner or a superuser has to
-- run it.
-- None of the three roles can log in. Grant them to users that can: GRANT mailroom_worker TO acme_worker.
--
--   mailroom_worker  mailroom run, collector, events, doctor: claims, settles, reads no table
--   mailroom_app     your application: signs people up, requests mails, consumes tokens, reads no secret
--   mailroom_oncall  mailroom status, why, dead, suppressions, forget, console, pause, resume, prune: no claim, no table, no secret
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
DECLARE
    called CONSTANT jsonb := '{
        "mailroom_worker": ["schema_version", "claim", "settle", "renew", "release", "record", "reserve",
                            "record_events", "keep_unreadable", "paused_actions",
                            "next_due", "backlog", "pulse", "heartbeat", "leave", "sleep_lock", "bell_lock",
                            "request_sleep", "paused", "recent_workers", "misplaced_tokens", "known_actions",
                            "adoption_faults", "adopted_count", "suppressed"],
        "mailroom_app":    ["send", "consume", "consume_code", "random_secret", "random_code", "suppressed",
                            "status_of", "is_sound", "is_incomplete"],
        "mailroom_oncall": ["overview", "known_actions", "paused", "paused_actions", "suppressed", "suppress", "unsuppress", "list_suppressions", "suppression_of",
                            "events_of", "event_counts", "forget", "recent_workers", "tokens_of", "last_tokens", "deliveries_of",
                            "is_dead", "dead_letters", "dead_count", "retry_dead", "drop_dead",
                            "traffic", "ledger_ends", "recent_deliveries", "pulse",
                            "pause", "resume", "prune_deliveries", "prune_events", "prune_tokens"]}';
    entry record;
    routine record;
BEGIN
    FOR entry IN SELECT key AS role, value AS names FROM jsonb_each(called) LOOP
        -- Roles belong to the cluster: an administrator, another database or an earlier run may have created it.
        IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = entry.role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', entry.role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- meanwhile
            END;
        END IF;
        -- Revoke what an older version of this file granted and this one does not.
        EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA mailroom FROM %I', entry.role);
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA mailroom FROM %I', entry.role);
        EXECUTE format('REVOKE ALL ON %1$s.accounts, %1$s.tokens FROM %2$I', mailroom.user_schema(), entry.role);
        EXECUTE format('GRANT USAGE ON SCHEMA mailroom TO %I', entry.role);
        FOR routine IN
            SELECT p.oid::regprocedure AS signature FROM pg_proc p
            WHERE p.pronamespace = 'mailroom'::regnamespace AND entry.names ? p.proname::text
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', routine.signature, entry.role);
        END LOOP;
    END LOOP;
END $$;

-- Only the application names tables: the worker and the on-call call functions.
DO $$
DECLARE
    tables CONSTANT text := mailroom.user_schema();
BEGIN
    IF NOT has_schema_privilege('mailroom_app', tables::regnamespace, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO mailroom_app', tables);
    END IF;
    IF NOT has_schema_privilege('mailroom_app', tables::regnamespace, 'USAGE') THEN
        RAISE EXCEPTION 'mailroom_app may not use the schema %, and this user may not grant that', tables
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Run it as the owner of that schema or as a superuser.';
    END IF;
    -- The application owns its users: it may read them all, and change the columns that no trigger sets. Grant what
    -- yours needs besides, such as DELETE on accounts, to your own user: this script resets the rights of these roles.
    EXECUTE format('GRANT SELECT, INSERT (email, login, status, locale), UPDATE (email, login, status, locale) '
                   'ON %s.accounts TO mailroom_app', tables);
    -- The database sets a token's secret, code and times. Only the mail may carry the secret.
    EXECUTE format('GRANT INSERT (action, account, subject, email, login, locale, data, key, lane, send_at), '
                   'SELECT (id, action, account, subject, user_table, email, key, lane, send_at, created_at, '
                           'expires_at, consumed_at) '
                   'ON %s.tokens TO mailroom_app', tables);
END $$;

COMMIT;
