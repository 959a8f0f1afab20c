-- What psql tells of the schema, \df+ mailroom.* and \d+ tokens, and what the reference's page on SQL is
-- made from: a comment on each function, table and column. A migration that adds one comments on it.

-- The schema and its tables.

COMMENT ON SCHEMA mailroom IS
    'What Mailroom keeps beside the application''s own tables. Programs call its functions; its tables are '
    'nobody else''s to write.';
COMMENT ON TABLE public.accounts IS
    'The application''s users. An inserted one that is provisioned gets its activation token in the same '
    'transaction.';
COMMENT ON COLUMN public.accounts.id IS 'What tokens refer to.';
COMMENT ON COLUMN public.accounts.email IS 'Where mail goes; unique whatever its case.';
COMMENT ON COLUMN public.accounts.login IS 'The user''s name, which templates may show; unique.';
COMMENT ON COLUMN public.accounts.status IS
    'provisioned until the activation token is consumed, then active; suspended is mailed nothing. '
    'Leaving suspended gives back what it was before.';
COMMENT ON COLUMN public.accounts.created_at IS 'When it was inserted.';
COMMENT ON COLUMN public.accounts.status_changed_at IS 'When the status last changed; a trigger keeps it.';
COMMENT ON COLUMN public.accounts.activated_at IS 'When it first became active; a trigger keeps it.';
COMMENT ON COLUMN public.accounts.suspended_at IS 'When it was last suspended; a trigger keeps it.';
COMMENT ON COLUMN public.accounts.unsuspended_at IS 'When it last left suspended; a trigger keeps it.';
COMMENT ON TABLE public.tokens IS
    'What is mailed: one row is one mail to one account. The application inserts action and account, and '
    'leaves all else to its default.';
COMMENT ON COLUMN public.tokens.id IS
    'What the ledger, the logs and `mailroom why` name a token by; it is no secret.';
COMMENT ON COLUMN public.tokens.action IS
    'What the token is for; mailroom.actions says which accounts may be mailed.';
COMMENT ON COLUMN public.tokens.secret IS
    '32 random bytes, which the signed token in the mail carries. Leave it to its default, and show it to '
    'nobody.';
COMMENT ON COLUMN public.tokens.code IS
    'Five digits, which are mailed with the token and asked for where the action needs a code. Show it to '
    'nobody.';
COMMENT ON COLUMN public.tokens.account IS 'Whom it is for.';
COMMENT ON COLUMN public.tokens.expires_at IS
    'From then on it is neither mailed nor consumed; infinity is never.';
COMMENT ON COLUMN public.tokens.consumed_at IS
    'When it was consumed; NULL until then. mailroom.consume writes it.';
COMMENT ON COLUMN public.tokens.created_at IS 'When it was asked for.';
COMMENT ON TABLE public.jobs IS
    'The queues: each row is one, with the cursor that says which tokens were handed out. A token is '
    'pending when the snapshot high sees its transaction, low does not, and it lies behind the position.';
COMMENT ON COLUMN public.jobs.job_type IS 'The queue''s name.';
COMMENT ON COLUMN public.jobs.low IS 'The snapshot before the window: what it sees was handed out.';
COMMENT ON COLUMN public.jobs.high IS 'The snapshot at the window''s end: what it does not see is for later.';
COMMENT ON COLUMN public.jobs.last_txid IS
    'With last_seq the position in the window: the transaction of the last token handed out; 0 is its '
    'beginning.';
COMMENT ON COLUMN public.jobs.last_seq IS 'The id of the last token handed out.';
COMMENT ON COLUMN public.jobs.system_identifier IS
    'The cluster whose transaction ids the snapshots name. In another one the next claim starts the '
    'cursor anew.';
COMMENT ON COLUMN public.jobs.moved_at IS 'When a claim last moved the cursor.';
COMMENT ON COLUMN public.jobs.paused_at IS 'Since when a person has paused the queue; NULL when nobody has.';
COMMENT ON COLUMN public.jobs.pause_reason IS 'Why, in that person''s words.';
COMMENT ON TABLE mailroom.actions IS
    'What each action asks for. A new action is a value of the type token_action and a row here.';
COMMENT ON COLUMN mailroom.actions.action IS 'The action.';
COMMENT ON COLUMN mailroom.actions.account_status IS
    'The status of an account that may be mailed, and may consume.';
COMMENT ON COLUMN mailroom.actions.needs_code IS
    'Whether the mail''s code is asked for when the token is consumed.';
COMMENT ON TABLE mailroom.leases IS
    'What is handed out and not settled. A lease past its due_at is claimed again, by whoever comes '
    'first.';
COMMENT ON COLUMN mailroom.leases.id IS 'The lease.';
COMMENT ON COLUMN mailroom.leases.job IS 'Its queue.';
COMMENT ON COLUMN mailroom.leases.tokens IS 'The tokens that are not settled yet.';
COMMENT ON COLUMN mailroom.leases.worker IS
    'Who has them in hand; empty while they wait to be tried again, restore after a restore.';
COMMENT ON COLUMN mailroom.leases.generation IS
    'How often it was claimed. Whoever names an older one can neither settle nor renew it.';
COMMENT ON COLUMN mailroom.leases.due_at IS 'When it may be claimed again.';
COMMENT ON TABLE mailroom.deliveries IS
    'The ledger: what became of every attempt of `mailroom run`, and what people decided. Insert only; '
    '`mailroom prune` deletes old rows.';
COMMENT ON COLUMN mailroom.deliveries.id IS 'The order of writing.';
COMMENT ON COLUMN mailroom.deliveries.token IS 'The token, which may have been deleted since.';
COMMENT ON COLUMN mailroom.deliveries.attempt IS
    'Which try it was: the lease''s generation; 0 when a person decided.';
COMMENT ON COLUMN mailroom.deliveries.provider IS 'The transport that was asked.';
COMMENT ON COLUMN mailroom.deliveries.message_id IS 'The provider''s name for the mail, once it is sent.';
COMMENT ON COLUMN mailroom.deliveries.detail IS 'Why, in the provider''s words or ours; never a secret.';
COMMENT ON COLUMN mailroom.deliveries.worker IS 'Who wrote it.';
COMMENT ON COLUMN mailroom.deliveries.at IS 'When it was written.';
COMMENT ON TABLE mailroom.rates IS
    'The rate that all workers of a queue share: a token bucket as one timestamp.';
COMMENT ON COLUMN mailroom.rates.job IS 'The queue.';
COMMENT ON COLUMN mailroom.rates.free_at IS 'Up to when the rate is used by what was charged.';
COMMENT ON COLUMN mailroom.rates.rate IS 'Recipients a second at present.';
COMMENT ON COLUMN mailroom.rates.changed_at IS 'When the rate was last reckoned.';
COMMENT ON COLUMN mailroom.rates.slowed_at IS 'When a throttle last took some of it.';
COMMENT ON TABLE mailroom.workers IS
    'The workers of `mailroom run`, each of which says every few seconds that it lives.';
COMMENT ON COLUMN mailroom.workers.worker IS 'Its name, as in leases and ledger.';
COMMENT ON COLUMN mailroom.workers.job IS 'Its queue.';
COMMENT ON COLUMN mailroom.workers.version IS 'Mailroom''s version there.';
COMMENT ON COLUMN mailroom.workers.started_at IS 'When it first said so.';
COMMENT ON COLUMN mailroom.workers.seen_at IS 'When it last said so.';
COMMENT ON COLUMN mailroom.workers.trouble IS 'What keeps it from sending; empty when nothing does.';
COMMENT ON COLUMN mailroom.workers.trouble_since IS 'Since when.';

-- What the application calls.

COMMENT ON FUNCTION mailroom.consume(bytea, text, text) IS
    'Consumes a token whose signature was verified, and says what came of it: consumed, unknown, used '
    '(consumed before), exhausted (five wrong codes), expired (or ended by a consumed sibling), '
    'suspended, ineligible (the account''s status does not fit the action), wrong_code. A wrong code is '
    'counted: let the transaction commit.';
COMMENT ON FUNCTION mailroom.random_secret() IS '32 random bytes: the default of tokens.secret.';
COMMENT ON FUNCTION mailroom.random_code() IS 'Five random digits: the default of tokens.code.';

-- What a worker calls.

COMMENT ON FUNCTION mailroom.claim(text, text, integer, integer, integer) IS
    'Hands out up to p_tokens messages in leases of at most p_lease_tokens, due after p_lease_ms. Leases '
    'past their time come first, whole, but for what was sent; then what is new. Fewer messages than '
    'asked for means that nothing more is pending, unless next_due is 0. A paused queue hands out none.';
COMMENT ON FUNCTION mailroom.settle(bigint, integer, bigint[]) IS
    'Ends a lease, or only the given tokens of it. False: the lease is not this generation''s any more.';
COMMENT ON FUNCTION mailroom.renew(bigint[], integer[], integer) IS
    'Moves due_at of the leases that still are of these generations, and gives back which they are.';
COMMENT ON FUNCTION mailroom.release(text, bigint[]) IS
    'Makes a worker''s leases due at once, but those it keeps; gives back how many tokens that frees.';
COMMENT ON FUNCTION mailroom.record(bigint, integer, text, text, bigint[], text[], text[], text[], integer, integer) IS
    'Settles a lease with outcomes, and writes them into the ledger, whether or not the lease still is of '
    'this generation; settled says whether it was. Sent and rejected tokens leave the lease; the others '
    'are due after p_retry_ms, or when the first of them expires if that comes before. A token that '
    'failed p_retry_limit times for no stated reason is rejected. An empty result is of a token that was '
    'not tried, and leaves no row.';
COMMENT ON FUNCTION mailroom.reserve(text, integer, double precision, double precision) IS
    'Charges recipients to the rate that all workers share, and says how long to wait before the call, '
    'and the rate at present. A wait longer than p_longest_s, or than 15 s, means not now: nothing is '
    'charged, ask again.';
COMMENT ON FUNCTION mailroom.slow(text, double precision) IS
    'Lets all workers give way to a throttle: takes 30 % off the rate they share, at most once a second, '
    'down to 2 % of p_ceiling.';
COMMENT ON FUNCTION mailroom.next_due(text) IS
    'Seconds until a claim is due: 0 when the last one stopped early or a lease is due, else until the '
    'first lease is, or the next look at all of them. NULL when there is nothing to wait for, or the '
    'queue is paused.';
COMMENT ON FUNCTION mailroom.backlog(text) IS
    'How many tokens wait for a claim, how many are in leases, and the age in seconds of the oldest of '
    'both. It counts all that waits: mailroom.pulse costs less.';
COMMENT ON FUNCTION mailroom.has_queue(text) IS 'Whether there is such a queue.';
COMMENT ON FUNCTION mailroom.age(bigint) IS
    'For how many seconds a token has been there; NULL when it is gone.';
COMMENT ON FUNCTION mailroom.pulse(text, integer) IS
    'How the queue is, cheaply, in one row (none for an unknown queue): of what waits it looks at the '
    'first p_most tokens, and p_most waiting is that or more. oldest_due is for how many seconds the '
    'oldest mail has waited that could be on its way, oldest_unsettled how many seconds ago the oldest '
    'was asked for that waits or is in a lease, paused or not.';
COMMENT ON FUNCTION mailroom.heartbeat(text, text, text, text) IS
    'Says that a worker lives, and what keeps it from sending (empty when nothing does). Forgets those '
    'that have not been seen for a day.';
COMMENT ON FUNCTION mailroom.leave(text) IS 'Forgets a worker that ends in order.';
COMMENT ON FUNCTION mailroom.sleep_lock(text) IS
    'The key of the advisory lock by which a channel''s sleepers ask to be rung.';
COMMENT ON FUNCTION mailroom.bell_lock(text, text) IS
    'The key of the advisory lock of the one worker of a queue who answers the bell.';

-- What the people on call ask and do. Nothing here gives out a secret or a code.

COMMENT ON FUNCTION mailroom.overview(text) IS
    'How the queue is, in one row (none for an unknown queue): in_flight is what a worker holds, retrying '
    'what waits in a lease to be tried again, the counts are the ledger''s of the last minute and hour.';
COMMENT ON FUNCTION mailroom.paused(text) IS
    'Since when the queue is paused, and why: one row of NULLs when it is not, none for an unknown queue.';
COMMENT ON FUNCTION mailroom.pause(text, text) IS
    'Stops handing out mail, to all workers; what they have in hand goes out. False: there is no such '
    'queue.';
COMMENT ON FUNCTION mailroom.resume(text, text) IS
    'Hands out mail again, and rings the channel. False: the queue was not paused.';
COMMENT ON FUNCTION mailroom.workers_of(text) IS
    'The workers that were seen in the last hour, the longest-lived first: who is alive (seen in the last '
    '15 s), what they have in hand, and what keeps them from sending. up and silent are in seconds.';
COMMENT ON FUNCTION mailroom.tokens_of(text, text, integer) IS
    'An account''s last p_limit tokens, newest first, by its address or its login; or one token by its id: '
    'with all that decides about their mail. waits: no claim has come to it. An account without tokens is '
    'a row whose token is NULL; a token that is gone, and is still in the ledger or in a lease, has no '
    'action.';
COMMENT ON FUNCTION mailroom.deliveries_of(bigint[]) IS
    'The ledger''s rows of these tokens, in the order of writing.';
COMMENT ON FUNCTION mailroom.is_dead(bigint) IS
    'Whether a token is a dead letter: rejected last, never sent, in no lease.';
COMMENT ON FUNCTION mailroom.dead_letters(text, interval, timestamptz, bigint, integer) IS
    'Dead letters, newest first, before a row of the ledger (its at and id); of one action or, NULL, of '
    'all; of the time p_since or, NULL, of all. attempts counts the transport''s answers, expires_in is in '
    'seconds, NULL for never, hindrance is why the token may not be mailed. A token that was deleted has '
    'no action.';
COMMENT ON FUNCTION mailroom.dead_count(text, interval, integer) IS
    'How many dead letters there are among the newest p_rows rejections; more says that there are older '
    'rejections, which were not looked at.';
COMMENT ON FUNCTION mailroom.retry_dead(text, text, bigint[], boolean, text, text) IS
    'Puts dead letters into leases that are due at once, and rings. With p_renew the account of an '
    'expired one gets a new token: other is that one, or the valid one that it has already. The outcome '
    'of each is retried, renewed, valid, busy, not dead, or why it may not be mailed.';
COMMENT ON FUNCTION mailroom.drop_dead(bigint[], text, text) IS
    'Lets dead letters rest: the ledger still tells of them. The outcome of each is dropped or not dead.';
COMMENT ON FUNCTION mailroom.traffic(interval, integer, integer) IS
    'The ledger''s rows of the last p_span, counted by outcome and by intervals of p_step seconds, oldest '
    'first; dropped is what expired or was skipped. It counts the newest p_most rows: when that many are '
    'found, the first interval that has any may lack some.';
COMMENT ON FUNCTION mailroom.recent_deliveries(text, bigint, bigint, integer) IS
    'The ledger''s rows before the id p_before, newest first, of one outcome or, NULL, of any; among the '
    'p_look ids before it. A token that was deleted has no action.';
COMMENT ON FUNCTION mailroom.ledger_ends() IS
    'The ids of the ledger''s first and last row; NULLs when it is empty.';
COMMENT ON FUNCTION mailroom.oldest_age(text, integer) IS
    'For how many seconds the oldest mail has been asked for that is not settled, paused or not; NULL '
    'when there is none. It looks at the first p_most tokens that wait, and at the first p_most that are '
    'in leases.';
COMMENT ON FUNCTION mailroom.prune_deliveries(interval, integer) IS
    'Deletes up to p_batch of the ledger''s rows that are older, and gives back how many; 0 is the end.';
COMMENT ON FUNCTION mailroom.prune_tokens(bigint, interval, integer) IS
    'Looks at the p_batch tokens that follow the id p_after, and deletes those that have been expired or '
    'consumed for longer and are in no lease. Gives back the last one looked at, NULL at the end, and how '
    'many were deleted.';

-- What only the other functions call.

COMMENT ON FUNCTION mailroom.adopt(public.jobs) IS
    'Starts the cursor anew in a cluster that the queue was restored into, and puts what was waiting into '
    'leases.';
COMMENT ON FUNCTION mailroom.drop_tokens(bigint[], integer, text) IS
    'Writes down tokens that were to be mailed and may not be any more: expired, or skipped and why.';
COMMENT ON FUNCTION mailroom.eligible(bigint[]) IS
    'The messages of those tokens of the list that may still be mailed, in its order; NULL when none may.';
COMMENT ON FUNCTION mailroom.hindrance(bigint) IS
    'Why a token may not be mailed: deleted, consumed, superseded (a sibling was consumed), expired, '
    'suspended, ineligible; NULL when it may.';
COMMENT ON FUNCTION mailroom.lock_dead_letters() IS
    'Lets one person at a time decide about dead letters, in READ COMMITTED transactions only.';
COMMENT ON FUNCTION mailroom.renew_dead(bigint, text, text) IS
    'Gives the account of an expired dead letter a new token of the same action.';
COMMENT ON FUNCTION mailroom.unsent(bigint[]) IS
    'Those tokens of the list that the ledger does not have as sent, in its order.';
COMMENT ON FUNCTION mailroom.with_own_running(pg_snapshot) IS
    'The snapshot, with this transaction among the running ones.';

-- What triggers call.

COMMENT ON FUNCTION mailroom.issue_activation() IS
    'Gives each inserted account that is provisioned its activation token.';
COMMENT ON FUNCTION mailroom.keep_status_times() IS
    'Writes down when an account''s status changes; leaving suspended gives back what it was before.';
COMMENT ON FUNCTION mailroom.after_consumption() IS
    'Activates the account whose activation token is consumed, and ends the token''s unconsumed siblings.';
COMMENT ON FUNCTION mailroom.stamp() IS
    'Gives a row that carries another transaction''s txid, as a restore writes it, this one''s: the cursor '
    'would not find it.';
COMMENT ON FUNCTION mailroom.ring() IS
    'Tells the channel, its argument, how many tokens a statement inserted, if somebody sleeps.';
COMMENT ON FUNCTION mailroom.refuse_update() IS 'Refuses to change the ledger, which is insert only.';
