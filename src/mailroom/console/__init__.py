"""Shows the queue in a browser; ``server`` is the entry point."""
