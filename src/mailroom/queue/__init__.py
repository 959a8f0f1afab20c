"""The queue: claims, leases, and the signal that a claim is due."""
