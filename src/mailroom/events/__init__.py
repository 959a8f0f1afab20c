"""Reads SES's events from a queue, and records what they say. It begins in ``program``."""
