"""A demonstration on an embedded PostgreSQL; ``tour`` is where it begins."""
