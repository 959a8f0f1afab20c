-- Adopted tables: an application's own table of users. `mailroom adopt` writes its row here, its triggers and
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
    'The end of the names of its functions: mailroom.watch_NAME is the function of the triggers, which calls '
    'mailroom.report_NAME, mailroom.lock_NAME reads and locks a user, and mailroom.activate_NAME runs the assignments.';
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
    status text
);

-- A row of an adopted table after a statement, or before it.
CREATE TYPE mailroom.user_state AS (
    id     text,
    email  text,
    login  text,
    locale text,
    status text,
    is_new boolean
);

-- A user whom a statement inserted, changed or deleted. was is NULL for a new user, and status for one that is gone.
CREATE TYPE mailroom.user_change AS (
    id        text,
    email     text,
    login     text,
    locale    text,
    status    text,
    was       text,
    was_email text
);

-- Texts are cut where more of them is of no use, since a part of a statement's users is held in memory.
CREATE FUNCTION mailroom.user_facts(p_table mailroom.adopted) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('left(%I::text, 256) AS id, left((%s)::text, 255) AS email, left((%s)::text, 255) AS login, '
                  'left((%s)::text, 36) AS locale, '
                  'CASE WHEN (%s) THEN ''provisioned'' WHEN (%s) THEN ''active'' ELSE ''suspended'' END AS status',
                  p_table.key_column, p_table.email, p_table.login, p_table.locale, p_table.pending_when,
                  p_table.active_when)
$$;
COMMENT ON FUNCTION mailroom.user_facts IS
    'Returns the select list that makes a mailroom.adopted_user of a row of an adopted table.';

CREATE FUNCTION mailroom.adoption_of(p_table regclass) RETURNS regclass
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH RECURSIVE above (id, n) AS (
        SELECT p_table::oid, 0
        UNION ALL
        SELECT i.inhparent, a.n + 1 FROM above a JOIN pg_inherits i ON i.inhrelid = a.id)
    SELECT a.user_table FROM above JOIN mailroom.adopted a ON a.user_table = above.id ORDER BY above.n LIMIT 1
$$;
COMMENT ON FUNCTION mailroom.adoption_of IS
    'Returns an adopted table, or the one that a partition belongs to; NULL if there is none.';

CREATE FUNCTION mailroom.mailable_text(p_text text, p_length integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN nullif(left(regexp_replace(p_text, '[\u0001-\u001f\u007f-\u009f]', '', 'g'), p_length), '');
COMMENT ON FUNCTION mailroom.mailable_text IS
    'Returns a text without control characters, cut to a length; NULL if nothing is left.';

CREATE FUNCTION mailroom.mailable_locale(p_locale text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_locale ~ '^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*$' AND char_length(p_locale) <= 35
            THEN p_locale END;
COMMENT ON FUNCTION mailroom.mailable_locale IS 'Returns a language that is a BCP 47 tag, and NULL for any other text.';

-- The first condition holds for nearly all users.
CREATE FUNCTION mailroom.user_fault(p_id text, p_email text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_email ~ '^[^@\u0001-\u001f\u007f-\u009f]+@[^@\u0001-\u001f\u007f-\u009f]+$'
                 AND char_length(p_email) <= 254
                 AND p_id ~ '^[^\u0001-\u001f\u007f-\u009f]+$' AND char_length(p_id) <= 255 THEN NULL
            WHEN coalesce(p_email, '') = '' THEN 'the user has no address'
            WHEN char_length(p_email) > 254 THEN 'the address has more than 254 characters'
            WHEN p_email ~ '[\u0001-\u001f\u007f-\u009f]' THEN 'the address has a control character'
            WHEN p_email !~ '^[^@]+@[^@]+$' THEN 'the address does not have exactly one @, with something on both sides'
            WHEN p_id = '' THEN 'the user''s key is empty'
            WHEN char_length(p_id) > 255 THEN 'the user''s key has more than 255 characters'
            WHEN p_id ~ '[\u0001-\u001f\u007f-\u009f]' THEN 'the user''s key has a control character'
       END;
COMMENT ON FUNCTION mailroom.user_fault IS 'Returns why a user of an adopted table cannot be mailed; NULL if one can.';

-- Tokens are locked in the order of their ids, so that two statements with the same users cannot deadlock. A session
-- plans this once, maybe for one user and an empty table, and with it ends the tokens of ten thousand. So nothing is
-- joined that could be joined the other way round.
CREATE FUNCTION mailroom.end_unfit(p_table regclass, p_users mailroom.user_change[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off AS $$
DECLARE
    now    CONSTANT timestamptz := clock_timestamp();
    ids    bigint[];
    whys   text[];
    reason text;
BEGIN
    SELECT array_agg(t.id ORDER BY t.id), array_agg(t.why ORDER BY t.id) INTO ids, whys
    FROM unnest(p_users) u, LATERAL (
        SELECT x.id, CASE WHEN u.status IS NULL THEN 'user deleted'
                          WHEN u.email IS DISTINCT FROM u.was_email AND (k.has_link OR k.needs_code) THEN 'address changed'
                          WHEN u.status = 'suspended' THEN 'suspended'
                          WHEN u.status = 'active' THEN 'activated'
                          ELSE 'ineligible' END AS why
        FROM public.tokens x
        JOIN mailroom.actions k ON k.action = x.action
        WHERE x.subject = u.id AND x.user_table = p_table AND x.consumed_at IS NULL AND x.ended_at IS NULL
          AND (u.status IS NULL
               OR u.email IS DISTINCT FROM u.was_email AND (k.has_link OR k.needs_code)
               OR u.status = 'suspended' OR u.status <> k.account_status::text)
        OFFSET 0) t;
    PERFORM FROM public.tokens t WHERE t.id = ANY (ids) ORDER BY t.id FOR NO KEY UPDATE;
    FOREACH reason IN ARRAY ARRAY(SELECT DISTINCT w FROM unnest(whys) w) LOOP
        UPDATE public.tokens t SET expires_at = least(t.expires_at, now), ended_at = now, ended_as = reason
        WHERE t.id = ANY (ARRAY(SELECT i.id FROM unnest(ids, whys) i (id, why) WHERE i.why = reason))
          AND t.consumed_at IS NULL AND t.ended_at IS NULL;
    END LOOP;
END $$;
COMMENT ON FUNCTION mailroom.end_unfit IS
    'Ends the tokens that no longer fit their users. Notices do not depend on the address.';

-- A token to an address that cannot be mailed has ended from the start, so that no claim looks at it.
CREATE FUNCTION mailroom.request_activations(p_table regclass, p_users mailroom.user_change[], p_are_many boolean)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off AS $$
DECLARE
    now      CONSTANT timestamptz := clock_timestamp();
    rejected bigint[];
BEGIN
    WITH new AS (
        INSERT INTO public.tokens (action, user_table, subject, email, login, locale, lane, expires_at, ended_at,
                                   ended_as)
        SELECT k.action, p_table, coalesce(mailroom.mailable_text(u.id, 255), '?'),
               coalesce(mailroom.mailable_text(u.email, 254), ''), mailroom.mailable_text(u.login, 254),
               mailroom.mailable_locale(u.locale), CASE WHEN p_are_many THEN 'bulk' ELSE k.lane END,
               CASE WHEN f.fault IS NULL THEN statement_timestamp() + k.lifetime ELSE 'epoch' END,
               CASE WHEN f.fault IS NOT NULL THEN now END, f.fault
        FROM mailroom.actions k,
             unnest(p_users) WITH ORDINALITY AS u (id, email, login, locale, status, was, was_email, n),
             LATERAL mailroom.user_fault(u.id, u.email) AS f (fault)
        WHERE k.activates AND u.status = 'provisioned'
          AND (u.was IS NULL
               OR u.was = 'active' AND u.email IS DISTINCT FROM u.was_email
               OR (u.was = 'suspended' OR u.email IS DISTINCT FROM u.was_email)
                  AND EXISTS (SELECT FROM public.tokens t
                              WHERE t.subject = u.id AND t.user_table = p_table AND t.action = k.action
                                AND t.consumed_at IS NULL))
        ORDER BY u.n
        RETURNING id, ended_as)
    SELECT array_agg(n.id) INTO rejected FROM new n WHERE n.ended_as IS NOT NULL;
    IF rejected IS NOT NULL THEN
        INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, detail)
        SELECT t.id, mailroom.fingerprint(t.secret), 0, 'rejected', t.ended_as
        FROM public.tokens t WHERE t.id = ANY (rejected);
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.request_activations IS
    'Creates the activation tokens of new pending users, and of pending ones who had one and whose address changed or '
    'who are not suspended any more. A user that cannot be mailed is a rejection in the ledger.';

-- The function of the triggers, mailroom.watch_NAME, has the rights of the table's owner. It calls mailroom.report_NAME,
-- which only that owner may call, and which calls this with the name. So an owner can report on the own table only.
--
-- It handles large statements in parts, since PostgreSQL holds a part in memory. No failure may fail the application's
-- statement. What may fail reads only, so that its subtransaction gets no transaction id.
--
-- Where a trigger of the application's updates the users of the statement that fired it, Mailroom's fires first for the
-- inner statement, and then for the outer one with rows that are out of date. So this reads them again.
CREATE FUNCTION mailroom.users_changed(p_name text, p_table regclass, p_event text, p_states mailroom.user_state[],
                                       p_are_many boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    import_rows CONSTANT integer := 50;
    is_again    boolean;
    one         mailroom.user_state;
    adopted     regclass;
    users       mailroom.user_change[];
BEGIN
    -- A shorter way for the usual sign-up.
    IF p_event = 'INSERT' AND cardinality(p_states) = 1 AND NOT p_are_many AND pg_trigger_depth() = 1
       AND coalesce(current_setting('mailroom.inner_change', true), '') <> 'on' THEN
        one := p_states[1];
        IF one.email ~ '^[^@\u0001-\u001f\u007f-\u009f]+@[^@\u0001-\u001f\u007f-\u009f]+$'
           AND one.id ~ '^[^\u0001-\u001f\u007f-\u009f]+$' AND char_length(one.email) < 255
           AND char_length(one.id) < 256 THEN
            INSERT INTO public.tokens (action, user_table, subject, email, login, locale, lane, expires_at)
            SELECT k.action, a.user_table, one.id, one.email, mailroom.mailable_text(one.login, 254),
                   mailroom.mailable_locale(one.locale), k.lane, statement_timestamp() + k.lifetime
            FROM mailroom.actions k, mailroom.adopted a
            WHERE k.activates AND a.name = p_name AND a.user_table = p_table;
            IF FOUND THEN
                RETURN;
            END IF;
        END IF;
    END IF;
    IF pg_trigger_depth() > 1 THEN
        PERFORM set_config('mailroom.inner_change', 'on', true);
    END IF;
    is_again := p_event <> 'DELETE' AND current_setting('mailroom.inner_change', true) = 'on';
    SELECT a.user_table INTO adopted FROM mailroom.adopted a WHERE a.name = p_name;
    IF adopted IS NULL OR p_table <> adopted AND mailroom.adoption_of(p_table) IS DISTINCT FROM adopted THEN
        RAISE WARNING 'mailroom: % is not adopted, and has its triggers', p_table
            USING HINT = 'Run `mailroom doctor`.';
        RETURN;
    ELSIF p_event = 'TRUNCATE' THEN
        PERFORM mailroom.end_users(adopted, 'user deleted');
        RETURN;
    ELSIF p_event = 'INSERT' THEN
        users := ARRAY(SELECT ROW(s.id, s.email, s.login, s.locale, s.status, NULL, NULL)::mailroom.user_change
                       FROM unnest(p_states) s);
    ELSE
        users := ARRAY(
            SELECT ROW(s.id, max(s.email) FILTER (WHERE s.is_new), max(s.login) FILTER (WHERE s.is_new),
                       max(s.locale) FILTER (WHERE s.is_new), max(s.status) FILTER (WHERE s.is_new),
                       max(s.status) FILTER (WHERE NOT s.is_new), max(s.email) FILTER (WHERE NOT s.is_new)
                   )::mailroom.user_change
            FROM unnest(p_states) s GROUP BY s.id
            HAVING NOT bool_and(s.is_new)
            ORDER BY s.id);
    END IF;
    IF is_again THEN
        BEGIN
            users := ARRAY(
                SELECT ROW(u.id, l.email, l.login, l.locale, l.status, u.was, u.was_email)::mailroom.user_change
                FROM unnest(users) u, LATERAL mailroom.lock_user(adopted, u.id) l);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'mailroom: the users of % cannot be read: %', adopted, SQLERRM
                USING HINT = 'Run `mailroom doctor`.';
            RETURN;
        END;
    END IF;
    IF p_event <> 'INSERT' THEN
        PERFORM mailroom.end_unfit(adopted, users);
    END IF;
    IF p_event <> 'DELETE' THEN
        PERFORM mailroom.request_activations(adopted, users, p_are_many OR cardinality(users) > import_rows);
    END IF;
END $$;
COMMENT ON FUNCTION mailroom.users_changed IS
    'Ends and creates tokens for users whom a statement inserted, updated or deleted. If they cannot be read, as after '
    'a column was dropped, it warns.';

CREATE FUNCTION mailroom.end_users(p_table regclass, p_why text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    UPDATE public.tokens t SET expires_at = least(t.expires_at, clock_timestamp()), ended_at = clock_timestamp(),
                               ended_as = p_why
    WHERE t.user_table = p_table AND t.consumed_at IS NULL AND t.ended_at IS NULL
$$;
COMMENT ON FUNCTION mailroom.end_users IS 'Ends the tokens of all users of an adopted table.';

-- The table's owner could make it run with the rights of its caller, which are those of Mailroom's owner.
CREATE FUNCTION mailroom.owners_function(p_name text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    quoted CONSTANT text := format('mailroom.%I', p_name);
BEGIN
    IF EXISTS (SELECT FROM pg_proc p WHERE p.oid = to_regprocedure(quoted || '(text)') AND NOT p.prosecdef) THEN
        RAISE EXCEPTION 'mailroom: % is not SECURITY DEFINER any more', quoted
            USING ERRCODE = 'insufficient_privilege', HINT = 'Run `mailroom doctor`.';
    END IF;
    RETURN quoted;
END $$;
COMMENT ON FUNCTION mailroom.owners_function IS
    'Returns the quoted name of a function of an adopted table, which runs with its owner''s rights; an error if not.';

-- A key that its type does not have is nobody's. It is only tried with PostgreSQL's own types, since a cast to another may
-- call what the table's owner wrote; and it reads only, so that the subtransaction gets no transaction id.
CREATE FUNCTION mailroom.lock_user(p_table regclass, p_key text) RETURNS mailroom.adopted_user
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    name   text;
    kind   text;
    person mailroom.adopted_user;
BEGIN
    SELECT a.name, format_type(t.oid, NULL) INTO name, kind
    FROM mailroom.adopted a
    JOIN pg_class c ON c.oid = a.user_table
    LEFT JOIN pg_attribute k ON k.attrelid = c.oid AND k.attname = a.key_column
    LEFT JOIN pg_type t ON t.oid = k.atttypid AND t.typnamespace = 'pg_catalog'::regnamespace AND t.typcategory <> 'S'
    WHERE a.user_table = p_table;
    IF kind IS NOT NULL THEN
        BEGIN
            EXECUTE format('SELECT $1::%s', kind) USING p_key;
        EXCEPTION WHEN data_exception THEN
            RETURN NULL;
        END;
    END IF;
    IF name IS NOT NULL THEN
        EXECUTE format('SELECT u.* FROM %s($1) u', mailroom.owners_function('lock_' || name)) INTO person USING p_key;
        person.login := mailroom.mailable_text(person.login, 254);
        person.locale := mailroom.mailable_locale(person.locale);
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
        EXECUTE format('SELECT %s($1)', mailroom.owners_function('activate_' || rule.name)) USING p_key;
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

CREATE FUNCTION mailroom.lacks_activation(p_table regclass, p_key text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT NOT EXISTS (SELECT FROM public.tokens t JOIN mailroom.actions k ON k.action = t.action AND k.activates
                       WHERE t.subject = p_key AND t.user_table = p_table)
$$;
COMMENT ON FUNCTION mailroom.lacks_activation IS
    'Returns whether a user of an adopted table never had an activation, for `mailroom adopt --mail-existing`.';

CREATE FUNCTION mailroom.adopted_below(p_table regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE below (id) AS (
        SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = p_table
        UNION
        SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.id)
    SELECT b.id::regclass FROM below b JOIN pg_class c ON c.oid = b.id
    WHERE c.relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM mailroom.adopted a WHERE a.user_table = b.id)
    ORDER BY b.id
$$;
COMMENT ON FUNCTION mailroom.adopted_below IS
    'Returns the partitions of a table, and the tables that inherit from it, except those that are adopted themselves. '
    'Each needs triggers of its own for the statements that name it.';

-- A trigger sees neither a column that is generated when it is read, nor ctid and its like.
CREATE FUNCTION mailroom.facts_query(p_table mailroom.adopted) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('SELECT %s FROM (SELECT %s LIMIT 0) AS %I', mailroom.user_facts(p_table),
                  string_agg(format('NULL::%s AS %I', format_type(a.atttypid, a.atttypmod), a.attname), ', '
                             ORDER BY a.attnum), c.relname)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.oid = p_table.user_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
    GROUP BY c.relname
$$;
COMMENT ON FUNCTION mailroom.facts_query IS
    'Returns the query that evaluates the expressions of an adopted table as its triggers do, on no row; it fails if they '
    'do not fit.';

-- What the expressions do, they do with the rights of the table's owner: so this calls the functions, for no user.
CREATE FUNCTION mailroom.adoption_faults() RETURNS TABLE (user_table text, fault text, remedy text, works boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_column
DECLARE
    it_works CONSTANT text := 'MR000';
    pinned   CONSTANT text := current_setting('search_path');
    adopted  mailroom.adopted;
    again    text;
    schemas  name[];
BEGIN
    FOR adopted IN SELECT a.* FROM mailroom.adopted a ORDER BY a.adopted_at LOOP
        user_table := adopted.user_table::text;
        again := format('run `mailroom adopt %s --apply` again', user_table);
        works := false;
        IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = adopted.user_table) THEN
            fault := format('the table with the number %s was dropped, and is adopted', user_table);
            remedy := format('run `mailroom adopt %s --drop`', user_table);
            RETURN NEXT;
            CONTINUE;
        END IF;
        FOR fault, remedy IN
            SELECT CASE WHEN t.oid IS NULL THEN format('%s lacks the trigger %s', o.id, o.trigger)
                        ELSE format('the trigger %s on %s is disabled', o.trigger, o.id) END,
                   CASE WHEN t.oid IS NULL THEN again
                        ELSE format('ALTER TABLE %s ENABLE TRIGGER %s', o.id, o.trigger) END
            FROM (SELECT b.id, 'mailroom_' || e.event AS trigger
                  FROM (SELECT adopted.user_table AS id UNION ALL SELECT mailroom.adopted_below(adopted.user_table)) b,
                       unnest('{insert,update,delete,truncate}'::text[]) e (event)
                  WHERE e.event <> 'truncate' OR b.id = adopted.user_table) o
            LEFT JOIN pg_trigger t ON t.tgrelid = o.id AND t.tgname = o.trigger
                AND t.tgfoid = to_regprocedure(format('mailroom.%I()', 'watch_' || adopted.name))
            WHERE t.oid IS NULL OR t.tgenabled NOT IN ('O', 'A')
        LOOP
            RETURN NEXT;
        END LOOP;
        FOR fault IN
            SELECT CASE WHEN NOT p.prosecdef THEN format('mailroom.%I is not SECURITY DEFINER any more', p.proname)
                        WHEN e.of_mailroom AND p.proowner = n.nspowner
                            THEN format('%I may not call mailroom.%I', pg_get_userbyid(w.proowner), p.proname)
                        ELSE format('mailroom.%I belongs to %I', p.proname, pg_get_userbyid(p.proowner)) END
            FROM (VALUES ('watch_', false), ('lock_', false), ('activate_', false), ('report_', true)) e (kind, of_mailroom)
            JOIN pg_namespace n ON n.nspname = 'mailroom'
            JOIN pg_class c ON c.oid = adopted.user_table
            JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = e.kind || adopted.name
            LEFT JOIN pg_proc w ON e.of_mailroom AND w.pronamespace = n.oid AND w.proname = 'watch_' || adopted.name
            WHERE NOT p.prosecdef
               OR p.proowner NOT IN (n.nspowner, c.relowner) AND NOT pg_has_role(p.proowner, n.nspowner, 'MEMBER')
               OR e.of_mailroom AND p.proowner <> n.nspowner
               OR NOT has_function_privilege(w.proowner, p.oid, 'EXECUTE')
               OR NOT has_schema_privilege(w.proowner, n.oid, 'USAGE')
        LOOP
            fault := format('%s: %s', user_table, fault);
            remedy := again;
            RETURN NEXT;
        END LOOP;
        IF to_regprocedure(format('mailroom.%I(regclass, text, mailroom.user_state[], boolean)',
                                  'report_' || adopted.name)) IS NULL THEN
            fault := format('%s: mailroom.%I does not exist', user_table, 'report_' || adopted.name);
            remedy := again;
            RETURN NEXT;
        END IF;
        BEGIN
            IF current_setting('transaction_read_only') = 'off' THEN
                PERFORM mailroom.lock_user(adopted.user_table, NULL);
                PERFORM mailroom.activate_user(adopted.user_table, NULL);
            END IF;
            RAISE EXCEPTION USING ERRCODE = it_works;
        EXCEPTION
            WHEN SQLSTATE 'MR000' THEN
                NULL;
            WHEN insufficient_privilege THEN
                fault := format('%s: %s', user_table, SQLERRM);
                remedy := format('grant it again to %s, the owner of Mailroom''s schema, or to the owner of the table; '
                                 'or %s', current_user, again);
                RETURN NEXT;
            WHEN OTHERS THEN
                fault := format('%s: %s', user_table, SQLERRM);
                remedy := again || ', with the options that name what changed';
                RETURN NEXT;
        END;
        PERFORM set_config('search_path', adopted.search_path, true);
        schemas := pg_catalog.current_schemas(false);
        PERFORM pg_catalog.set_config('search_path', pinned, true);
        FOR fault, remedy IN
            SELECT format('every user may CREATE in the schema %I, which the search_path of %s reaches', n.nspname,
                          user_table),
                   format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', n.nspname)
            FROM pg_namespace n
            WHERE n.nspname = ANY (schemas) AND has_schema_privilege('public', n.oid, 'CREATE')
        LOOP
            works := true;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION mailroom.adoption_faults IS
    'Returns why an adopted table does not work any more: a column, a trigger, a right or the table itself is gone. If it '
    'works, there is a risk.';

CREATE FUNCTION mailroom.adopted_count() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT count(*) FROM mailroom.adopted
$$;
COMMENT ON FUNCTION mailroom.adopted_count IS 'Returns how many tables are adopted.';
