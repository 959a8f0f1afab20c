"""A demonstration on an embedded PostgreSQL; begin at ``tour``."""
