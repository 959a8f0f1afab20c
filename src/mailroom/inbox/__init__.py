"""A local SES that keeps mail instead of sending it; begin at ``server``."""
