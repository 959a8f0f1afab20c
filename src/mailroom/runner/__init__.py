"""``mailroom run``: claims, sends and settles in one process. It begins in ``program``."""
