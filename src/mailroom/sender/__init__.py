"""``mailroom sender``: mails the lines that it reads. It begins in ``program``."""
