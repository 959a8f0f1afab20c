"""What people on call ask and do: status, why, dead letters, prune."""
