"""Lets the inbox answer each call over SES's API after a while, as SES does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from mailroom.inbox import app, protocol


@contextmanager
def answering_after(seconds: float) -> Iterator[None]:
    """Inboxes that start now accept a call's mails after this number of seconds."""
    create_app = app.create_app

    def create_slow_app(*arguments: Any) -> ASGIApp:
        quick = create_app(*arguments)

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", "/"):
                await asyncio.sleep(seconds)
            await quick(scope, receive, send)

        return slow

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(protocol, "create_app", create_slow_app)
        yield
