"""``mailroom run``: collects, sends and settles in one process. It begins in ``program``."""
