"""Runs Mailroom's job on other queues on PostgreSQL, each tuned as its own documentation advises.

An adapter is a module with four functions. ``prepare(url)`` installs the queue. ``enqueue(url, jobs,
fields)`` enqueues tokens, by id or with all their fields. ``enqueue_one(connection, token)`` enqueues one
inside the transaction of a sign-up. ``main()`` is the worker: one process that writes lines to standard
output until SIGTERM.
"""
