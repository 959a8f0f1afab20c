"""A database whose functions fail a number of times with an SQLSTATE, as a sick server's would."""

from __future__ import annotations

from support.queue_sql import Db

# Counts over a rollback.
FAILURES = "CREATE SEQUENCE IF NOT EXISTS public.failures MINVALUE 0 START 0"
SIGNATURE = """
SELECT pg_get_function_arguments(oid), pg_get_function_result(oid), pg_get_function_identity_arguments(oid)
FROM pg_proc WHERE proname = %s AND pronamespace = 'mailroom'::regnamespace
"""


def refuse(db: Db, function: str, sqlstate: str, times: int) -> None:
    """Let ``mailroom.function`` fail this often with ``sqlstate``, and then do its work."""
    db.execute(FAILURES)
    db.execute("GRANT USAGE ON SEQUENCE public.failures TO public")
    db.execute("SELECT setval('public.failures', 0, false)")
    ((arguments, result, identity),) = db.execute(SIGNATURE, [function]).fetchall()
    names = ", ".join(part.split()[0] for part in identity.split(", ")) if identity else ""
    many = result.startswith(("TABLE", "SETOF"))
    call = f"mailroom.real_{function}({names})"
    answer = f"RETURN QUERY SELECT * FROM {call};" if many else f"RETURN {call};"
    if result == "void":
        answer = f"PERFORM {call};"
    # Both at once: a worker that found no function in between would end.
    db.execute(
        f"""
        ALTER FUNCTION mailroom.{function}({identity}) RENAME TO real_{function};
        CREATE FUNCTION mailroom.{function}({arguments}) RETURNS {result} LANGUAGE plpgsql AS $$
        #variable_conflict use_column
        BEGIN
            IF nextval('public.failures') < {times} THEN
                RAISE EXCEPTION 'injected' USING ERRCODE = '{sqlstate}';
            END IF;
            {answer}
        END $$""".encode()
    )
