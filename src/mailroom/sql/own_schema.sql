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
CREATE FUNCTION mailroom.qualify_bodies() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET check_function_bodies = on AS $$
DECLARE
    written    CONSTANT text := 'public' || '.';
    named      CONSTANT text := mailroom.user_schema() || '.';
    definition text;
BEGIN
    IF named = written THEN
        RETURN;
    END IF;
    FOR definition IN
        SELECT replace(pg_get_functiondef(p.oid), written, named) FROM pg_proc p
        WHERE p.pronamespace = 'mailroom'::regnamespace AND strpos(p.prosrc, written) > 0
    LOOP
        EXECUTE definition;
    END LOOP;
END $$;
COMMENT ON FUNCTION mailroom.qualify_bodies IS
    'Writes the name of the schema of accounts, tokens and jobs into the bodies of the functions, which say ';
