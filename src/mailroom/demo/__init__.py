"""``mailroom demo``: a demonstration on an embedded PostgreSQL. It begins in ``tour``."""
