"""``mailroom sender``: reads lines and sends them; ``program`` begins, ``policy`` decides on retries."""
