"""The example application: sign up, activate, sign in, forget the password, come back.

It uses Mailroom as any application would, through ``mailroom.verify`` and ``mailroom.consume``;
``docs/example.md`` walks through it.
"""

from mailroom.demo.signup.app import create_app

__all__ = ["create_app"]
