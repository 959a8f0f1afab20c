"""The command line, one file for each command. It begins in ``main``."""
