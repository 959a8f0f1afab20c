"""Prepares mails one by one, so that one that cannot be prepared affects no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mailroom.answers import Answer, Result, Scope
from mailroom.errors import MailroomError, TemplateError
from mailroom.transports.redaction import shortened
from mailroom.wire import Message

Value = TypeVar("Value")


def prepare(make: Callable[[], Value], message: Message) -> Value | Answer:
    """What ``make`` returns for a message, or the rejection of one that it cannot make anything of.

    Raises:
        MailroomError: ``make`` raises it; it is a fault of the configuration, and not of the message.
    """
    try:
        return make()
    except MailroomError:
        raise
    except ValueError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - no message's content may end the sending
        why = f"the mail cannot be prepared: {type(error).__name__}: {error}"
    return Answer(Result.REJECTED, shortened(why, (message.token, message.code)), is_ours=True)


def no_template(error: TemplateError) -> Answer:
    """The answer to every mail of an action whose template cannot be used."""
    return Answer(Result.PAUSED, f"{error} ({error.hint})", scope=Scope.ACTION)
