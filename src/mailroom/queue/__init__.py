"""What speaks to the queue: claim, lease, listener, leader."""
