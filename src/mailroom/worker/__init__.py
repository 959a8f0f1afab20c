"""``mailroom run``: collects, sends and settles in one process; ``program`` is where it begins."""
