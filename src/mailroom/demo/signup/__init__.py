"""The example application: sign up, activate, sign in, recover; begin at ``app``."""
