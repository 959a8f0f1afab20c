"""``mailroom inbox``: a local SES that keeps mail instead of sending it. It begins in ``server``."""
