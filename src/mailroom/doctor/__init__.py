"""``mailroom doctor``: checks of everything that Mailroom depends on; ``diagnosis`` is the entry point."""
