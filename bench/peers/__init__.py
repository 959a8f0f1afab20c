"""Other queues on PostgreSQL at Mailroom's job, each as its own documentation advises for throughput.

An adapter is a module with ``prepare(url)``, which installs the queue; ``enqueue(url, jobs,
fields)``, which enqueues so many tokens, by their ids alone or with all their fields;
``enqueue_one(connection, token)``, inside a sign-up's transaction; and ``main()``, the worker: one process
that writes lines to standard output until SIGTERM.
"""
