"""``mailroom collector``: claims tokens and writes them as lines; ``program`` is where it begins."""
