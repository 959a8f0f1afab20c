-- The schema of accounts, tokens and jobs: the first one of search_path when the first migration ran.
--
-- The migrations do not name it. Each begins by setting search_path to it, so that what they create and drop lies
-- there, whatever tool runs them and with which search_path. The bodies of functions have a fixed search_path, and say
-- public; each migration ends by writing the schema's name in its place.

CREATE FUNCTION mailroom.user_schema() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT quote_ident(n.nspname) FROM pg_attribute a
    JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE a.attrelid = 'mailroom.actions'::regclass AND a.attname = 'action'
$$;
COMMENT ON FUNCTION mailroom.user_schema IS
    'Returns the quoted name of the schema that has accounts, tokens and jobs.';

-- CREATE OR REPLACE keeps the owner, the rights and the comment, and the definition has the SET clauses.
--
-- While a migration runs, PostgreSQL's own functions and operators come first, but one in the schema of accounts may
-- match the types of a call better. What the migration bound to it, such as a constraint, would run it for ever.
CREATE FUNCTION mailroom.finish_migration() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET check_function_bodies = on AS $$
DECLARE
    written    CONSTANT text := 'public' || '.';
    named      CONSTANT text := mailroom.user_schema() || '.';
    definition text;
    bound      record;
BEGIN
    IF named <> written THEN
        FOR definition IN
            SELECT replace(pg_get_functiondef(p.oid), written, named) FROM pg_proc p
            WHERE p.pronamespace = 'mailroom'::regnamespace AND strpos(p.prosrc, written) > 0
              AND age(p.xmin) <= 0  -- of this transaction: others may name an application's tables in public
        LOOP
            EXECUTE definition;
        END LOOP;
    END IF;
    FOR bound IN
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS object,
               pg_describe_object(d.refclassid, d.refobjid, 0) AS foreigner
        FROM pg_depend d
        LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
        LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
        WHERE d.xmin = pg_current_xact_id()::xid
          AND coalesce(p.pronamespace, o.oprnamespace)
              NOT IN ('pg_catalog'::regnamespace, 'mailroom'::regnamespace)
    LOOP
        RAISE EXCEPTION 'mailroom: % would use % in place of PostgreSQL''s own', bound.object, bound.foreigner
            USING ERRCODE = 'duplicate_function',
                  HINT = 'Rename it during the migration, or install Mailroom in a schema of its own.';
    END LOOP;
END $$;
COMMENT ON FUNCTION mailroom.finish_migration IS
    'Writes the name of the schema of accounts, tokens and jobs into the bodies of the functions that this transaction '
    'defined, which say public. Fails if this transaction bound something to a function or an operator of another schema.';
