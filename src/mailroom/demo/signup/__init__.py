"""The example application: sign up, activate, sign in, recover; ``app`` is where it begins."""
