"""Settings: each program's environment variables, read and checked once."""
