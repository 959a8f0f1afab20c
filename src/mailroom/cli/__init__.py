"""The command line, one file a command; ``main`` wires them."""
