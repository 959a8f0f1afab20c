"""The parts that all pages share: the guard, templates, static files, the server."""
