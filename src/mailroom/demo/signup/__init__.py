"""The example application: sign up, sign in, and every mail that goes with it. It begins in ``app``."""
