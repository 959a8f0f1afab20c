-- Suppressed addresses: nothing is sent to them, until a person lifts it.

-- HMAC-SHA-256 (RFC 2104) with sha256(), which is all that PostgreSQL has without an extension. The table keeps the key
-- as the two blocks that the hash begins with.
CREATE TABLE mailroom.hash_key (
    one_row boolean PRIMARY KEY DEFAULT true,
    inner_block bytea NOT NULL,
    outer_block bytea NOT NULL,
    CONSTRAINT hash_key_one_row CHECK (one_row),
    CONSTRAINT hash_key_blocks CHECK (octet_length(inner_block) = 64 AND octet_length(outer_block) = 64)
);

INSERT INTO mailroom.hash_key (inner_block, outer_block)
SELECT pg_catalog.string_agg(pg_catalog.set_byte('\x00', 0, b.byte OPERATOR(pg_catalog.#) 54), '' ORDER BY b.n),
       pg_catalog.string_agg(pg_catalog.set_byte('\x00', 0, b.byte OPERATOR(pg_catalog.#) 92), '' ORDER BY b.n)
FROM (SELECT n, CASE WHEN n OPERATOR(pg_catalog.<) 32 THEN pg_catalog.get_byte(k.key, n) ELSE 0 END AS byte
      FROM (SELECT mailroom.random_secret() AS key OFFSET 0) k, pg_catalog.generate_series(0, 63) n) b;

COMMENT ON TABLE mailroom.hash_key IS
    'The key of the hashes of suppressed addresses, which only the owner may read. Without it a hash tells nobody whose '
    'address it is.';
COMMENT ON COLUMN mailroom.hash_key.one_row IS 'Always true, so that there is one row.';
COMMENT ON COLUMN mailroom.hash_key.inner_block IS 'The key, as HMAC mixes it into the inner hash.';
COMMENT ON COLUMN mailroom.hash_key.outer_block IS 'The key, as HMAC mixes it into the outer hash.';

CREATE FUNCTION mailroom.address_hash(p_email text) RETURNS bytea
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT sha256(k.outer_block || sha256(k.inner_block || convert_to(mailroom.normal_address(p_email), 'UTF8')))
    FROM mailroom.hash_key k
$$;
COMMENT ON FUNCTION mailroom.address_hash IS
    'Returns the keyed hash (HMAC-SHA-256) of an address, the same for all its spellings.';

CREATE TABLE mailroom.suppressions (
    hash    bytea PRIMARY KEY,
    address text,
    reason  text        NOT NULL,
    source  text        NOT NULL DEFAULT '',
    event   bigint,
    at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX suppressions_at_idx ON mailroom.suppressions (at, hash);

COMMENT ON TABLE mailroom.suppressions IS
    'The addresses that get no mail: of a permanent bounce or a complaint, or by a person''s decision.';
COMMENT ON COLUMN mailroom.suppressions.hash IS 'mailroom.address_hash of the address.';
COMMENT ON COLUMN mailroom.suppressions.address IS 'The address as it was given; NULL after mailroom.forget.';
COMMENT ON COLUMN mailroom.suppressions.reason IS 'bounced, complained, or a person''s reason.';
COMMENT ON COLUMN mailroom.suppressions.source IS 'Who suppressed it: SES, or the database user of a person.';
COMMENT ON COLUMN mailroom.suppressions.event IS 'The event of mailroom.events that suppressed it; NULL without one.';
COMMENT ON COLUMN mailroom.suppressions.at IS 'Since when.';

CREATE FUNCTION mailroom.suppressed(p_email text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT s.reason FROM mailroom.suppressions s WHERE s.hash = (SELECT mailroom.address_hash(p_email))
$$;
COMMENT ON FUNCTION mailroom.suppressed IS
    'Returns why an address gets no mail: bounced, complained, or a person''s reason; NULL if it gets mail.';

-- One statement for the recipients of a claim.
CREATE FUNCTION mailroom.suppressed_among(p_emails text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT e.email FROM mailroom.hash_key k CROSS JOIN unnest(p_emails) AS e (email)
        WHERE EXISTS (SELECT FROM mailroom.suppressions s
                      WHERE s.hash = sha256(k.outer_block || sha256(
                          k.inner_block || convert_to(mailroom.normal_address(e.email), 'UTF8')))));
END $$;
COMMENT ON FUNCTION mailroom.suppressed_among IS 'Returns those of these addresses that are suppressed.';

CREATE FUNCTION mailroom.suppress(p_email text, p_reason text, p_source text DEFAULT session_user) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF p_email IS NULL OR char_length(p_email) > 254 OR p_email ~ '[\u0001-\u001f\u007f-\u009f]'
       OR p_email !~ '^("[^"@]+"|[^\s\u00a0@<>,;"]+)@[^\s\u00a0@<>,;"]+$' THEN
        RAISE EXCEPTION 'mailroom: an address to suppress has one @, at most 254 characters, and no space, control '
                        'character, name or second address'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give the bare address, such as zoe@example.com.';
    ELSIF p_source = 'SES' THEN
        RAISE EXCEPTION 'mailroom: the source SES is that of suppressions by its events'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave the source out, or name a person.';
    ELSIF coalesce(p_reason, '') !~ '\S' THEN
        RAISE EXCEPTION 'mailroom: a suppression needs a reason' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO mailroom.suppressions (hash, address, reason, source)
    VALUES (mailroom.address_hash(p_email), p_email, left(p_reason, 200), left(p_source, 200))
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION mailroom.suppress IS
    'Suppresses an address, in all its spellings. Returns false, and changes nothing, if it is suppressed already.';

CREATE FUNCTION mailroom.unsuppress(p_email text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    DELETE FROM mailroom.suppressions s WHERE s.hash = mailroom.address_hash(p_email);
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION mailroom.unsuppress IS
    'Lets an address get mail again, in all its spellings. Returns false if it was not suppressed.';

CREATE FUNCTION mailroom.list_suppressions(p_before_at timestamptz, p_before_hash bytea, p_limit integer)
RETURNS TABLE (hash bytea, address text, reason text, source text, at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT s.hash, s.address, s.reason, s.source, s.at FROM mailroom.suppressions s
    WHERE (s.at, s.hash) < (p_before_at, p_before_hash) ORDER BY s.at DESC, s.hash DESC LIMIT p_limit
$$;
COMMENT ON FUNCTION mailroom.list_suppressions IS
    'Returns suppressions, newest first, from before another one (its at and hash). One that was forgotten has no address.';
