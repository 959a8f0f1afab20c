"""Commands for people on call: status, why, dead letters, prune."""
