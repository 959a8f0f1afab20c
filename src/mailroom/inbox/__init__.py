"""A local SES that keeps mail instead of sending it; ``server`` is where it begins."""
