"""Integrations with frameworks. Each needs the extra of its name, and nothing of Mailroom's imports them."""
