"""``mailroom sender``: sends the mails of lines. It begins in ``program``; ``policy`` decides on retries."""
