"""The example application: sign up, activate, sign in, recover. It begins in ``app``."""
