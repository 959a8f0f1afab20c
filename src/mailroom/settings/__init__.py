"""The environment, read and checked once."""
