-- Adopted tables: an application's own table of users. `mailroom adopt` writes its row here, its triggers and two
-- functions. A token of its users has the table in user_table and the user's key in subject.

CREATE TABLE mailroom.adopted (
    user_table    regclass PRIMARY KEY,
    name          text NOT NULL UNIQUE,
    key_column    text NOT NULL,
    email         text NOT NULL,
    login         text NOT NULL DEFAULT 'NULL',
    locale        text NOT NULL DEFAULT 'NULL',
    pending_when  text NOT NULL DEFAULT 'false',
    active_when   text NOT NULL DEFAULT 'true',
    on_activation text,
    search_path   text NOT NULL,
    adopted_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE mailroom.adopted IS
    'The application''s own tables of users. `mailroom adopt` writes it, beside the triggers of each table.';
COMMENT ON COLUMN mailroom.adopted.user_table IS 'The table.';
COMMENT ON COLUMN mailroom.adopted.name IS
    'The end of the names of its two functions: mailroom.lock_NAME reads and locks a user, and mailroom.activate_NAME '
    'runs the assignments.';
COMMENT ON COLUMN mailroom.adopted.key_column IS 'The column that is unique, whose text is the subject of tokens.';
COMMENT ON COLUMN mailroom.adopted.email IS 'An expression of the table''s columns: the address.';
COMMENT ON COLUMN mailroom.adopted.login IS 'An expression: the name that templates show.';
COMMENT ON COLUMN mailroom.adopted.locale IS 'An expression: the language, as a BCP 47 tag.';
COMMENT ON COLUMN mailroom.adopted.pending_when IS
    'A condition: the user waits for activation. It corresponds to the status provisioned.';
COMMENT ON COLUMN mailroom.adopted.active_when IS
    'A condition: the user, who is not pending, is active. A user who is neither is suspended, and gets no mail.';
COMMENT ON COLUMN mailroom.adopted.on_activation IS
    'The assignments to the user''s row when an activation is consumed; NULL for none.';
COMMENT ON COLUMN mailroom.adopted.search_path IS 'The search_path with which the expressions are evaluated.';
COMMENT ON COLUMN mailroom.adopted.adopted_at IS 'When the table was adopted.';

CREATE TYPE mailroom.adopted_user AS (
    id     text,
    email  text,
    login  text,
    locale text,
    status account_status
);

-- A user of whom something changed. was is NULL for a new user, and status for one that is gone.
CREATE TYPE mailroom.user_change AS (
    id              text,
    email           text,
    login           text,
    locale          text,
    status          account_status,
    was             account_status,
    address_changed boolean
);

CREATE FUNCTION mailroom.user_facts(p_table mailroom.adopted) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%I::text AS id, (%s)::text AS email, (%s)::text AS login, (%s)::text AS locale, '
                  'CASE WHEN (%s) THEN ''provisioned'' WHEN (%s) THEN ''active'' ELSE ''suspended'' '
                  'END::public.account_status AS status',
                  p_table.key_column, p_table.email, p_table.login, p_table.locale, p_table.pending_when,
                  p_table.active_when)
$$;
COMMENT ON FUNCTION mailroom.user_facts IS
    'Returns the select list that makes a mailroom.adopted_user of a row of an adopted table.';

CREATE FUNCTION mailroom.address_fault(p_email text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN coalesce(p_email, '') = ''  THEN 'the user has no address'
            WHEN char_length(p_email) > 254 THEN 'the address has more than 254 characters'
            WHEN p_email ~ '[\u0001-\u001f\u007f-\u009f]' THEN 'the address has a control character'
            WHEN p_email !~ '^[^@]+@[^@]+$' THEN 'the address does not have exactly one @, with something on both sides'
       END;
COMMENT ON FUNCTION mailroom.address_fault IS 'Returns why no mail can go to an address; NULL if one can.';

-- A token to an address that cannot be mailed has ended from the start, so that no claim looks at it.
CREATE FUNCTION mailroom.users_changed(p_table regclass, p_users mailroom.user_change[], p_are_many boolean)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    now CONSTANT timestamptz := clock_timestamp();
BEGIN
    UPDATE public.tokens t
    SET expires_at = least(t.expires_at, now), ended_at = now,
        ended_as = CASE WHEN u.status IS NULL THEN 'user deleted'
                        WHEN u.address_changed THEN 'address changed'
                        WHEN u.status = 'active' THEN 'activated'
                        WHEN u.status = 'suspended' THEN 'suspended'
                        ELSE 'ineligible' END
    FROM unnest(p_users) u, mailroom.actions k
    WHERE u.was IS NOT NULL AND t.subject = u.id AND t.user_table = p_table AND k.action = t.action
      AND t.consumed_at IS NULL AND t.ended_at IS NULL
      AND (u.status IS NULL
           OR u.address_changed AND (k.has_link OR k.needs_code)
           OR u.status = 'suspended' OR u.status <> k.account_status);
    WITH new AS (
        INSERT INTO public.tokens (action, user_table, subject, email, login, locale, lane, expires_at, ended_at,
                                   ended_as)
        SELECT k.action, p_table, u.id, left(coalesce(u.email, ''), 254),
               nullif(left(regexp_replace(u.login, '[\u0001-\u001f\u007f-\u009f]', '', 'g'), 254), ''),
               CASE WHEN u.locale ~ '^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*$' AND char_length(u.locale) <= 35
                    THEN u.locale END,
               CASE WHEN p_are_many THEN 'bulk' ELSE k.lane END,
               CASE WHEN u.fault IS NULL THEN statement_timestamp() + k.lifetime ELSE 'epoch' END,
               CASE WHEN u.fault IS NOT NULL THEN now END, u.fault
        FROM mailroom.actions k,
             (SELECT c.*, mailroom.address_fault(c.email) AS fault
              FROM unnest(p_users) WITH ORDINALITY AS c (id, email, login, locale, status, was, address_changed, n)) u
        WHERE k.activates AND u.status = 'provisioned'
          AND (u.was IS NULL
               OR u.address_changed
                  AND (u.was <> 'provisioned'
                       OR EXISTS (SELECT FROM public.tokens t
                                  WHERE t.subject = u.id AND t.user_table = p_table AND t.action = k.action
                                    AND t.consumed_at IS NULL))
               OR NOT u.address_changed AND u.was = 'suspended'
                  AND EXISTS (SELECT FROM public.tokens t
                              WHERE t.subject = u.id AND t.user_table = p_table AND t.action = k.action
                                AND t.consumed_at IS NULL AND t.ended_as = 'suspended'))
        ORDER BY u.n
        RETURNING id, secret, ended_as)
    INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, detail)
    SELECT n.id, mailroom.fingerprint(n.secret), 0, 'rejected', n.ended_as FROM new n WHERE n.ended_as IS NOT NULL;
END $$;
COMMENT ON FUNCTION mailroom.users_changed IS
    'Ends the tokens that no longer fit their users, and creates the activation tokens of new pending users, of '
    'pending ones whose address changed, and of those that a suspension took theirs from. An address that cannot be '
    'mailed is a rejection in the ledger.';

-- No failure in here may fail the application's statement. What may fail reads only, so that its subtransaction gets
-- no transaction id. Large statements are handled in parts, since PostgreSQL holds a part in memory.
CREATE FUNCTION mailroom.after_user_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    part_rows   CONSTANT integer := 10000;
    import_rows CONSTANT integer := 50;
    pinned      CONSTANT text := current_setting('search_path');
    rule        mailroom.adopted;
    changed     text;
    users       mailroom.user_change[];
    are_many    boolean;
    done        integer := 0;
BEGIN
    SELECT * INTO rule FROM mailroom.adopted a WHERE a.user_table = TG_RELID;
    IF NOT FOUND THEN
        RAISE WARNING 'mailroom: % is not adopted, and has its triggers', TG_RELID::regclass
            USING HINT = 'Run `mailroom doctor`.';
        RETURN NULL;
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM mailroom.end_users(TG_RELID);
        RETURN NULL;
    END IF;
    changed := CASE TG_OP
        WHEN 'INSERT' THEN
            format('SELECT n.*, NULL::public.account_status AS was, false AS address_changed '
                   'FROM (SELECT %s FROM new_users AS %I) n WHERE n.status = ''provisioned''',
                   mailroom.user_facts(rule), TG_TABLE_NAME)
        WHEN 'UPDATE' THEN
            format('SELECT o.id, n.email, n.login, n.locale, n.status, o.status AS was, '
                          'n.email IS DISTINCT FROM o.email AS address_changed '
                   'FROM (SELECT %1$s FROM old_users AS %2$I) o LEFT JOIN (SELECT %1$s FROM new_users AS %2$I) n USING (id) '
                   'WHERE n.status IS DISTINCT FROM o.status OR n.email IS DISTINCT FROM o.email ORDER BY o.id',
                   mailroom.user_facts(rule), TG_TABLE_NAME)
        ELSE
            format('SELECT o.id, o.email, o.login, o.locale, NULL::public.account_status AS status, o.status AS was, '
                          'false AS address_changed '
                   'FROM (SELECT %s FROM old_users AS %I) o ORDER BY o.id',
                   mailroom.user_facts(rule), TG_TABLE_NAME) END;
    LOOP
        BEGIN
            PERFORM set_config('search_path', rule.search_path, true);
            EXECUTE format('SELECT array_agg(c::mailroom.user_change) FROM (%s LIMIT %s OFFSET %s) c',
                           changed, part_rows, done) INTO users;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'mailroom: the users of % cannot be read: %', TG_RELID::regclass, SQLERRM
                USING HINT = 'Run `mailroom doctor`.';
            RETURN NULL;
        END;
        EXIT WHEN users IS NULL;
        PERFORM set_config('search_path', pinned, true);
        are_many := coalesce(are_many, cardinality(users) > import_rows);
        PERFORM mailroom.users_changed(TG_RELID, users, are_many);
        EXIT WHEN cardinality(users) < part_rows;
        done := done + part_rows;
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION mailroom.after_user_change IS
    'Looks at the users whom a statement inserted, updated or deleted, for mailroom.users_changed. If they cannot be '
    'read, as after a column was dropped, it warns.';

CREATE FUNCTION mailroom.end_users(p_table regclass) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    UPDATE public.tokens t SET expires_at = least(t.expires_at, clock_timestamp()), ended_at = clock_timestamp(),
                               ended_as = 'user deleted'
    WHERE t.user_table = p_table AND t.consumed_at IS NULL AND t.ended_at IS NULL
$$;
COMMENT ON FUNCTION mailroom.end_users IS 'Ends the tokens of all users of an adopted table.';

CREATE FUNCTION mailroom.lock_user(p_table regclass, p_key text) RETURNS mailroom.adopted_user
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    name   text;
    person mailroom.adopted_user;
BEGIN
    SELECT a.name INTO name FROM mailroom.adopted a WHERE a.user_table = p_table;
    IF name IS NOT NULL THEN
        EXECUTE format('SELECT u.* FROM mailroom.%I($1) u', 'lock_' || name) INTO person USING p_key;
    END IF;
    RETURN person;
END $$;
COMMENT ON FUNCTION mailroom.lock_user IS
    'Locks a user of an adopted table until the transaction ends, and returns it; NULL if there is none.';

CREATE FUNCTION mailroom.activate_user(p_table regclass, p_key text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    rule mailroom.adopted;
BEGIN
    SELECT * INTO rule FROM mailroom.adopted a WHERE a.user_table = p_table;
    IF rule.on_activation IS NOT NULL THEN
        EXECUTE format('SELECT mailroom.%I($1)', 'activate_' || rule.name) USING p_key;
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.activate_user IS 'Runs the assignments of an adopted table on a user''s row.';

CREATE FUNCTION mailroom.adopted_table(p_table regclass) RETURNS regclass
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    tables regclass[] := ARRAY(SELECT a.user_table FROM mailroom.adopted a
                               WHERE a.user_table = coalesce(p_table, a.user_table) ORDER BY a.adopted_at);
BEGIN
    IF cardinality(tables) = 1 THEN
        RETURN tables[1];
    ELSIF cardinality(tables) > 1 THEN
        RAISE EXCEPTION 'mailroom: the user may be one of several tables: %', array_to_string(tables, ', ')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Name the table with user_table.';
    ELSIF p_table IS NOT NULL THEN
        RAISE EXCEPTION 'mailroom: the table % is not adopted', p_table
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Run `mailroom adopt`.';
    END IF;
    RAISE EXCEPTION 'mailroom: no table of users is adopted'
        USING ERRCODE = 'invalid_parameter_value', HINT = 'Run `mailroom adopt`.';
END $$;
COMMENT ON FUNCTION mailroom.adopted_table IS
    'Returns this adopted table, or the only one if it is NULL; an error if there is none or several.';
