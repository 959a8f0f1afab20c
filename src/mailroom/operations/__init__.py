"""The operations for people on call: status, why, dead letters, pause, prune."""
