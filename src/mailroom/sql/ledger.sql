-- The ledger: one row for each attempt to send, and for each decision of a person.
--
-- `mailroom run` settles a lease when the transport has answered, with an outcome for each of its tokens. A
-- token to be retried stays in the lease, held by no worker, until it is due. Then a claim tests again whether
-- it may be mailed, and records the tokens that may not.

CREATE TABLE mailroom.deliveries (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token       bigint      NOT NULL,
    fingerprint bytea,
    attempt     integer     NOT NULL,
    outcome     text        NOT NULL,
    result      text        NOT NULL DEFAULT '',
    provider    text        NOT NULL DEFAULT '',
    message_id  text        NOT NULL DEFAULT '',
    detail      text        NOT NULL DEFAULT '',
    worker      text        NOT NULL DEFAULT '',
    recipient   text        NOT NULL DEFAULT '',
    template    text        NOT NULL DEFAULT '',
    language    text        NOT NULL DEFAULT '',
    subject     text        NOT NULL DEFAULT '',
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT deliveries_outcome_check
        CHECK (outcome IN ('sent', 'retried', 'rejected', 'expired', 'skipped', 'suppressed', 'unknown'))
);
CREATE INDEX deliveries_token_idx ON mailroom.deliveries (token, id);
CREATE INDEX deliveries_at_idx ON mailroom.deliveries (at);
-- Few rows are rejections, and the dead letters are among them.
CREATE INDEX deliveries_rejected_idx ON mailroom.deliveries (at, id) WHERE outcome = 'rejected';
-- These find a person's mails after the address changed, or the person was deleted.
CREATE INDEX deliveries_recipient_idx ON mailroom.deliveries (mailroom.normal_address(recipient), id)
    WHERE recipient <> '';
CREATE INDEX deliveries_message_id_idx ON mailroom.deliveries (message_id)
    WHERE message_id <> '';
CREATE INDEX deliveries_subject_idx ON mailroom.deliveries (subject, id) WHERE subject <> '';

COMMENT ON TABLE mailroom.deliveries IS
    'The ledger: the outcome of each attempt of `mailroom run`, and the decisions of people. Insert only: only '
    'mailroom.forget erases words of a row, and `mailroom prune` deletes old rows.';
COMMENT ON COLUMN mailroom.deliveries.id IS 'The order of insertion.';
COMMENT ON COLUMN mailroom.deliveries.token IS 'The token. It may have been deleted since.';
COMMENT ON COLUMN mailroom.deliveries.fingerprint IS
    'The fingerprint of the token''s secret. A token with the same id and another fingerprint is another token, '
    'and the row does not belong to it. NULL if it is not known.';
COMMENT ON COLUMN mailroom.deliveries.attempt IS
    'The number of the attempt, which is the lease''s generation; 0 for a person''s decision.';
COMMENT ON COLUMN mailroom.deliveries.outcome IS
    'sent, rejected (for good), expired or skipped (not sent, for the reason in detail), suppressed (not sent: the '
    'address gets no mail), retried, unknown (the answer was lost; retried).';
COMMENT ON COLUMN mailroom.deliveries.result IS
    'The class of the transport''s answer: sent, rejected, transient, throttled, unknown, failed, paused; by '
    'hand for a person''s decision; known if an event of SES told the answer, unrendered if one told that SES took the mail '
    'and could not render it.';
COMMENT ON COLUMN mailroom.deliveries.provider IS
    'The transport that was used: ses, sesv2, smtp, debug; of two mail servers with its host and port.';
COMMENT ON COLUMN mailroom.deliveries.message_id IS 'The provider''s id of the mail, if it was sent.';
COMMENT ON COLUMN mailroom.deliveries.detail IS
    'The reason, in the provider''s words or Mailroom''s. It never holds a secret.';
COMMENT ON COLUMN mailroom.deliveries.worker IS 'The worker or person that wrote the row.';
COMMENT ON COLUMN mailroom.deliveries.recipient IS 'The address; empty if it is not known, or was forgotten.';
COMMENT ON COLUMN mailroom.deliveries.template IS 'The name of the template that the mail was made from.';
COMMENT ON COLUMN mailroom.deliveries.language IS 'The language of that template; empty for the templates'' own.';
COMMENT ON COLUMN mailroom.deliveries.subject IS 'The token''s subject; empty if it has none, or was forgotten.';
COMMENT ON COLUMN mailroom.deliveries.at IS 'When the row was written.';

-- After an asynchronous failover that lost the last commits, sequences go back: a new token gets the id of a
-- lost one. A secret does not come again, and eight bytes of its digest do not tell it.
CREATE FUNCTION mailroom.fingerprint(p_secret bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN substring(sha256(p_secret) FOR 8);
COMMENT ON FUNCTION mailroom.fingerprint IS
    'Returns the first 8 bytes of the SHA-256 of a token''s secret. With the id it names the token for ever.';

CREATE FUNCTION mailroom.is_of(p_fingerprint bytea, p_secret bytea) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(p_fingerprint = mailroom.fingerprint(p_secret), true);
COMMENT ON FUNCTION mailroom.is_of IS
    'Returns whether a row of the ledger with this fingerprint belongs to the token of its id that has this '
    'secret. True if either is NULL: then only the id is known.';

CREATE FUNCTION mailroom.refuse_update() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'mailroom: the ledger is insert only' USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;
COMMENT ON FUNCTION mailroom.refuse_update IS 'Refuses updates of the ledger and of events, which are insert only.';

-- All columns but those that mailroom.forget erases.
CREATE TRIGGER deliveries_insert_only
    BEFORE UPDATE OF id, token, fingerprint, attempt, outcome, result, provider, message_id, worker, template, language, at
    ON mailroom.deliveries FOR EACH STATEMENT EXECUTE FUNCTION mailroom.refuse_update();

CREATE FUNCTION mailroom.unrendered(p_token bigint, p_after bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT EXISTS (SELECT FROM mailroom.deliveries d
                   WHERE d.token = p_token AND d.id > p_after AND d.result = 'unrendered')
$$;
COMMENT ON FUNCTION mailroom.unrendered IS
    'Returns whether SES reported, after this row of the ledger, that it could not render the token''s mail.';

-- One statement for many tokens, in a language that keeps its plan, since a claim may meet a thousand.
CREATE FUNCTION mailroom.not_mailable(p_tokens bigint[]) RETURNS TABLE (token bigint, fingerprint bytea, why text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    suppressing CONSTANT boolean := EXISTS (SELECT FROM mailroom.suppressions);
BEGIN
    RETURN QUERY SELECT p.id, mailroom.fingerprint(t.secret), CASE
        WHEN t.id IS NULL THEN 'deleted'
        WHEN t.consumed_at IS NOT NULL THEN 'consumed'
        WHEN t.ended_at IS NOT NULL THEN t.ended_as
        WHEN t.expires_at <= clock_timestamp() AND NOT (coalesce(k.renews, false) AND mailroom.renewable(t))
            THEN 'expired'
        WHEN a.status = 'suspended' THEN 'suspended'
        WHEN k.action IS NULL THEN 'unknown action'
        WHEN NOT mailroom.fits(t.account, a.status, k.account_status) THEN 'ineligible'
        WHEN suppressing AND mailroom.suppressed(t.email) IS NOT NULL THEN 'suppressed'
    END
    FROM unnest(p_tokens) WITH ORDINALITY AS p (id, n)
    LEFT JOIN public.tokens t ON t.id = p.id
    LEFT JOIN public.accounts a ON a.id = t.account
    LEFT JOIN mailroom.actions k ON k.action = t.action
    ORDER BY p.n;
END $$;
COMMENT ON FUNCTION mailroom.not_mailable IS
    'Returns for each token why it may not be mailed, as mailroom.why_not_mailable does, and its fingerprint, which is '
    'NULL for a deleted one.';

CREATE FUNCTION mailroom.why_not_mailable(p_token bigint) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT m.why FROM mailroom.not_mailable(ARRAY[p_token]) m
$$;
COMMENT ON FUNCTION mailroom.why_not_mailable IS
    'Returns why a token may not be mailed: deleted, consumed, tokens.ended_as (what ended it), '
    'expired (and not to be renewed), suspended, unknown action (without a row in '
    'mailroom.actions), ineligible, suppressed; NULL if it may.';

CREATE FUNCTION mailroom.record_skipped(p_tokens bigint[], p_attempt integer, p_worker text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    INSERT INTO mailroom.deliveries (token, fingerprint, attempt, outcome, detail, worker, recipient, subject)
    SELECT m.token, coalesce(m.fingerprint, ''), p_attempt,
           CASE coalesce(m.why, 'expired') WHEN 'expired' THEN 'expired' WHEN 'suppressed' THEN 'suppressed'
                                           ELSE 'skipped' END,
           CASE m.why WHEN 'suppressed' THEN mailroom.suppressed(t.email) ELSE coalesce(m.why, 'expired') END, p_worker,
           coalesce(t.email, ''), coalesce(t.subject, '')
    FROM mailroom.not_mailable(p_tokens) m LEFT JOIN public.tokens t ON t.id = m.token;
END $$;
COMMENT ON FUNCTION mailroom.record_skipped IS
    'Records in the ledger that these tokens may not be mailed any more: expired, suppressed, or skipped with the reason.';
