"""``mailroom collector``: claims tokens and writes them as lines. It begins in ``program``."""
