"""``mailroom console``: shows the queue in a browser. It begins in ``server``."""
