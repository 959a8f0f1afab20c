"""Serves the example on loopback, with ``python -m mailroom.demo.signup``."""

import os
import secrets

import uvicorn

from mailroom.demo.signup.app import create_app

app = create_app(
    os.environ["MAILROOM_DATABASE_URL"],
    os.environ["MAILROOM_SECRET_KEY"],
    session_secret=os.environ.get("SESSION_SECRET") or secrets.token_hex(32),
    app_name=os.environ.get("MAILROOM_APP_NAME") or "Acme",
    inbox_url=os.environ.get("INBOX_URL", ""),
)
# Without an access log, because the address of a page behind a link holds the token.
uvicorn.run(
    app,
    host="127.0.0.1",
    port=int(os.environ.get("PORT", "8000")),
    access_log=False,
    timeout_graceful_shutdown=3,
)
