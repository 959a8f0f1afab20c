-- One form for all spellings of an address.
--
-- The form is hashed and indexed, so it must not depend on the locale of the database: a restore may change that.

-- RFC 3492, section 6.2. A label has at most 63 characters, so an array of them is fast enough.
CREATE FUNCTION mailroom.unicode_label(p_label text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    encoded CONSTANT text := substr(p_label, 5);
    hyphen  CONSTANT integer := length(encoded) - strpos(reverse(encoded), '-') + 1;
    codes   integer[] := '{}';
    at      integer := 1;
    code    integer := 128;
    place   integer := 0;
    bias    integer := 72;
    before  integer;
    weight  integer;
    digit   integer;
    step    integer;
    least_digit integer;
    points  integer;
    decoded text;
BEGIN
    IF p_label !~ '^xn--[a-z0-9-]{1,59}$' THEN
        RETURN p_label;
    END IF;
    IF strpos(encoded, '-') > 0 THEN
        codes := ARRAY(SELECT ascii(c) FROM string_to_table(left(encoded, hyphen - 1), NULL) c);
        at := hyphen + 1;
    END IF;
    WHILE at <= length(encoded) LOOP
        before := place;
        weight := 1;
        step := 36;
        LOOP
            digit := strpos('abcdefghijklmnopqrstuvwxyz0123456789', substr(encoded, at, 1)) - 1;
            IF at > length(encoded) OR digit < 0 OR digit > (2147483647 - place) / weight THEN
                RETURN p_label;
            END IF;
            at := at + 1;
            place := place + digit * weight;
            least_digit := least(greatest(step - bias, 1), 26);
            EXIT WHEN digit < least_digit;
            IF weight > 2147483647 / (36 - least_digit) THEN
                RETURN p_label;
            END IF;
            weight := weight * (36 - least_digit);
            step := step + 36;
        END LOOP;
        points := cardinality(codes) + 1;
        digit := (place - before) / CASE WHEN before = 0 THEN 700 ELSE 2 END;
        digit := digit + digit / points;
        bias := 0;
        WHILE digit > 455 LOOP
            digit := digit / 35;
            bias := bias + 36;
        END LOOP;
        bias := bias + 36 * digit / (digit + 38);
        IF place / points > 1114111 - code THEN
            RETURN p_label;
        END IF;
        code := code + place / points;
        place := place % points;
        IF code BETWEEN 55296 AND 57343 THEN
            RETURN p_label;
        END IF;
        codes := codes[:place] || code || codes[place + 1:];
        place := place + 1;
    END LOOP;
    SELECT string_agg(chr(c), '' ORDER BY n) INTO decoded FROM unnest(codes) WITH ORDINALITY AS u (c, n);
    -- What no registrar would take could turn one address into another.
    IF decoded IS NULL OR decoded ~ '^[\u0001-\u007f]*$' OR decoded ~ '[\u0001-\u0020\u007f-\u00a0.@\u3002]'
       OR decoded <> mailroom.plain_letters(decoded) THEN
        RETURN p_label;
    END IF;
    RETURN decoded;
END $$;
COMMENT ON FUNCTION mailroom.unicode_label IS
    'Returns a label of a domain in Unicode. One that does not begin with xn--, or cannot be decoded, stays as it is.';

CREATE FUNCTION mailroom.plain_letters(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(string_agg(CASE
        WHEN l.code BETWEEN 192 AND 222 AND l.code <> 215 OR l.code BETWEEN 913 AND 939 OR l.code BETWEEN 1040 AND 1071
            THEN chr(l.code + 32)
        WHEN l.code BETWEEN 1024 AND 1039 THEN chr(l.code + 80)
        WHEN l.code = 304 THEN 'i'
        WHEN l.code = 376 THEN chr(255)
        WHEN l.code = 902 THEN chr(940)
        WHEN l.code BETWEEN 904 AND 906 THEN chr(l.code + 37)
        WHEN l.code = 908 THEN chr(972)
        WHEN l.code BETWEEN 910 AND 911 THEN chr(l.code + 63)
        WHEN l.code % 2 = 0 AND (l.code BETWEEN 256 AND 311 OR l.code BETWEEN 330 AND 375 OR l.code BETWEEN 1120 AND 1215
                                 OR l.code BETWEEN 7680 AND 7829 OR l.code BETWEEN 7840 AND 7935)
             OR l.code % 2 = 1 AND (l.code BETWEEN 313 AND 328 OR l.code BETWEEN 377 AND 382)
            THEN chr(l.code + 1)
        ELSE l.letter END, '' ORDER BY l.n), '')
    FROM (SELECT s.letter, s.n, ascii(s.letter) AS code
          FROM string_to_table(lower(normalize(p_text, NFKC) COLLATE "C"), NULL)
               WITH ORDINALITY AS s (letter, n)) l
$$;
COMMENT ON FUNCTION mailroom.plain_letters IS
    'Returns a text of a UTF-8 database in plain and small letters: Latin, Greek and Cyrillic.';

CREATE FUNCTION mailroom.unicode_address(p_email text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    address text := lower(p_email COLLATE "C");
    up_to_at integer;
BEGIN
    IF getdatabaseencoding() = 'UTF8' THEN
        address := mailroom.plain_letters(p_email);
        up_to_at := length(address) - strpos(reverse(address), '@') + 1;
        IF strpos(address, '@') > 0 THEN
            address := left(address, up_to_at) || coalesce((
                SELECT string_agg(mailroom.unicode_label(l.label), '.' ORDER BY l.n)
                FROM string_to_table(translate(substr(address, up_to_at + 1), U&'\3002', '.'), '.')
                     WITH ORDINALITY AS l (label, n)), '');
        END IF;
    END IF;
    RETURN CASE WHEN address LIKE '%@%_.' THEN rtrim(address, '.') ELSE address END;
END $$;
COMMENT ON FUNCTION mailroom.unicode_address IS
    'Returns what mailroom.normal_address does, for an address with letters beyond ASCII or a label that begins with xn--.';

-- NFKC makes 18 letters of some, and an entry of an index has room for 2,704 bytes. No address that can be mailed has
-- more than 320 characters.
CREATE FUNCTION mailroom.normal_address(p_email text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN left(CASE WHEN p_email ~ '^[\u0001-\u007f]*$' AND p_email !~* 'xn--' AND right(p_email, 1) <> '.'
                 THEN lower(p_email COLLATE "C")
                 ELSE mailroom.unicode_address(p_email) END, 320);
COMMENT ON FUNCTION mailroom.normal_address IS
    'Returns one form for all spellings of an address: in small and plain letters (NFKC), with the domain in Unicode '
    'and without a final dot, cut to 320 characters. Only ASCII letters are changed in a database that is not UTF-8.';
