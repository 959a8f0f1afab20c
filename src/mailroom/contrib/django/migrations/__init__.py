"""Mailroom's schema and the adoption of the users, as migrations of Django's."""
