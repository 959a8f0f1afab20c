"""The queue in a browser; ``server`` is where it begins."""
