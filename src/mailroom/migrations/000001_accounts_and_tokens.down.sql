-- Made by `make migration` from src/mailroom/sql. Edit the files there, then run it again.

DROP TRIGGER tokens_ring ON public.tokens;
DROP FUNCTION mailroom.ring;
DROP FUNCTION mailroom.request_sleep;
DROP FUNCTION mailroom.bell_lock;
DROP FUNCTION mailroom.sleep_lock;
DROP TRIGGER tokens_after_consumption ON public.tokens;
DROP FUNCTION mailroom.after_consumption;
DROP FUNCTION mailroom.consume;
DROP TRIGGER tokens_stamp ON public.tokens;
DROP FUNCTION mailroom.stamp;
DROP TRIGGER accounts_after_address_change ON public.accounts;
DROP FUNCTION mailroom.after_address_change;
DROP TRIGGER accounts_issue_activation ON public.accounts;
DROP FUNCTION mailroom.issue_activation;
DROP TABLE public.tokens;
DROP FUNCTION mailroom.random_code;
DROP FUNCTION mailroom.random_secret;
DROP TABLE mailroom.actions;
DROP TYPE public.token_action;
DROP TRIGGER accounts_keep_status_times_update ON public.accounts;
DROP TRIGGER accounts_keep_status_times_insert ON public.accounts;
DROP FUNCTION mailroom.keep_status_times;
DROP TABLE public.accounts;
DROP TYPE public.account_status;
DROP FUNCTION mailroom.schema_version;
DROP SCHEMA mailroom;
