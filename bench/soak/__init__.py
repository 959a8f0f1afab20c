"""The soak: steady load, random faults, and an account of every mail. It begins in ``__main__``."""
