"""``mailroom doctor``: checks everything that Mailroom depends on. It begins in ``diagnosis``."""
