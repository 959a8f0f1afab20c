"""Runs Mailroom's job on other queues on PostgreSQL, each tuned as its own documentation advises.

An adapter is a function that returns an ``Adapter``: how the queue is installed, the SQL that enqueues a job,
and the command of the worker. The worker writes lines to standard output, or with MAILROOM_BENCH_JOB=send
calls SES, until SIGTERM. MAILROOM_BENCH_TUNING holds its tuning as JSON.
"""
