"""The pytest plugin: an inbox, and a worker that sends to it what the test's database queues.

    def test_somebody_signs_up(client, mailroom_inbox):
        client.post("/sign-up", data={"email": "zoe@example.com"})
        mail = mailroom_inbox.wait(to="zoe@example.com", action="activation")
        assert client.post("/activate", data={"token": mail.token}).ok

Promises: pytest loads this module and nothing else of the worker until a test uses the fixture. The worker
runs in a thread with an event loop of its own, so tests may be synchronous or asynchronous. It sends over
SMTP to the inbox of the same process, whatever the environment says, and so never to a person.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

import pytest

if TYPE_CHECKING:
    from concurrent.futures import Future

    from mailroom.answers import Answer
    from mailroom.inbox.mails import KeptMail
    from mailroom.settings.transports import SmtpServer
    from mailroom.settings.worker import RunSettings
    from mailroom.transports.transport import Transport
    from mailroom.wire import Message

WAIT_S: Final = 10.0
STOPS_IN_S: Final = 30.0
WHY_S: Final = 5.0
# Where the environment does not set them; the address is that of Django's and Starlette's test clients.
DEFAULTS: Final = {"MAILROOM_APP_NAME": "Test", "MAILROOM_APP_URL": "http://testserver"}
# What the environment says of these is replaced.
OWN: Final = {
    "MAILROOM_DATABASE_URL_FILE": "",
    "MAILROOM_TRANSPORT_FILE": "",
    "MAILROOM_BATCH_TIMEOUT": "0",
    "MAILROOM_DEBUG": "",
    "MAILROOM_HTTP": "",
    "MAILROOM_SEND_RATE": "10000",
    "MAILROOM_SHUTDOWN_TIMEOUT": "1000",
}


class NoMail(AssertionError):
    """The mail that a test waited for did not arrive."""


@dataclass(frozen=True)
class ReceivedMail:
    """A mail in the inbox.

    Attributes:
        to: the recipient's address.
        action: the action's name.
        locale: the language that the mail declares; empty if it declares none.
        links: every address in it.
        link: the one with the token; empty if there is none.
        token: what the link carries; empty if there is no link.
        code: the code that it shows; empty if it shows none.
    """

    to: str
    action: str
    locale: str
    subject: str = field(repr=False)
    text: str = field(repr=False)
    html: str = field(repr=False)
    links: tuple[str, ...] = field(repr=False)
    link: str = field(repr=False)
    token: str = field(repr=False)
    code: str = field(repr=False)


class MailroomInbox:
    """The mails that the worker has sent, in the order in which they arrived."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._changed = threading.Condition()
        self._kept: dict[str, KeptMail] = {}  # by Message-ID
        self._mails: list[ReceivedMail] = []
        self._waiting: list[ReceivedMail] = []
        self._not_sent: list[str] = []
        self.error: BaseException | None = None

    @property
    def mails(self) -> tuple[ReceivedMail, ...]:
        """All mails that have arrived until now."""
        with self._changed:
            return tuple(self._mails)

    def wait(
        self, *, to: str | None = None, action: str | None = None, timeout_s: float = WAIT_S
    ) -> ReceivedMail:
        """The first mail to this address and of this action that no ``wait`` has returned before.

        In an asynchronous test whose application has more to do meanwhile, call it in a thread.

        Raises:
            NoMail: none arrives in time; the text says what did, and what `mailroom why` knows.
        """
        __tracebackhide__ = True

        def found() -> ReceivedMail | None:
            return next((mail for mail in self._waiting if _matches(mail, to, action)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self.error, timeout_s)
            if mail := found():
                self._waiting.remove(mail)
                return mail
        raise NoMail(self._explained(to, action, timeout_s)) from None

    def _keep(self, mail: KeptMail) -> None:
        """Keep a mail that arrived over SMTP, until the worker knows that it was accepted."""
        from mailroom.inbox.messages import read_header

        self._kept[read_header(mail.message, "Message-ID").strip("<>")] = mail

    def _note(self, messages: Sequence[Message], answers: Sequence[Answer]) -> None:
        """Note what the worker has sent."""
        from mailroom.answers import Result

        with self._changed:
            for message, answer in zip(messages, answers, strict=True):
                if answer.result is Result.SENT:
                    mail = _received(message, self._kept.pop(answer.message_id))
                    self._mails.append(mail)
                    self._waiting.append(mail)
                else:
                    why = f"{answer.result.value}: {answer.detail}"
                    self._not_sent.append(f"{message.action.name} to {message.email}: {why}")
            self._changed.notify_all()

    def _end(self, error: BaseException) -> None:
        """Note the error that ended the worker."""
        with self._changed:
            self.error = error
            self._changed.notify_all()

    def _explained(self, to: str | None, action: str | None, timeout_s: float) -> str:
        wanted = "no mail" + (f" to {to!r}" if to else "") + (f" of the action {action!r}" if action else "")
        mails = [
            f"{mail.action} to {mail.to}" + (", which a wait has returned" * (mail not in self._waiting))
            for mail in self.mails
        ]
        parts = [f"{wanted} arrived within {timeout_s:g} s", "arrived: " + ("; ".join(mails) or "nothing")]
        if self._not_sent:
            parts.append("not sent: " + "; ".join(self._not_sent))
        if self.error:
            parts[0] = f"{wanted} will arrive: the worker has ended: {self.error}"
        elif to:
            parts.append(f"mailroom why {to}: {self._why(to)}")
        return "\n".join(parts)

    def _why(self, to: str) -> str:
        from mailroom.database import sync
        from mailroom.errors import MailroomError
        from mailroom.operations.reports import UnknownPerson, stories

        try:
            with (
                sync.connected(self._database_url, parameters=sync.answer_limit(WHY_S)) as connection,
                sync.answering_within(connection, WHY_S),
            ):
                return "\n\n".join(story.text() for story in stories(connection, to))
        except UnknownPerson as error:
            return f"{error}; has the test committed, and to this database?"
        except MailroomError as error:
            return str(error)


@contextmanager
def running_inbox(database_url: str, environ: Mapping[str, str]) -> Iterator[MailroomInbox]:
    """Run an inbox, and a worker on a database.

    Args:
        database_url: the database.
        environ: the worker's other settings.

    Raises:
        MailroomError: the worker cannot start, or has ended.
    """
    import asyncio
    from concurrent.futures import Future

    from mailroom.inbox.inbox import Inbox
    from mailroom.inbox.server import InboxServer
    from mailroom.settings.variables import read_settings
    from mailroom.settings.worker import RunSettings

    inbox = MailroomInbox(database_url)
    with InboxServer(inbox=Inbox(on_mail=inbox._keep), smtp_port=0) as server:
        given = {"MAILROOM_DATABASE_URL": database_url, "MAILROOM_TRANSPORT": server.smtp_url}
        settings = read_settings(RunSettings, {**DEFAULTS, **environ, **OWN, **given})
        started: Future[Callable[[], object]] = Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(_work(settings, inbox, started)), name="mailroom-worker", daemon=True
        )
        thread.start()
        stop = started.result()
        try:
            yield inbox
        finally:
            stop()
            thread.join(STOPS_IN_S)
    if inbox.error:
        raise inbox.error


async def _work(settings: RunSettings, inbox: MailroomInbox, started: Future[Callable[[], object]]) -> None:
    """Run the worker until the function that ``started`` returns is called."""
    import asyncio

    from mailroom.runner.embedded import working

    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def stop_soon() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    try:
        async with working(settings, [_transport(settings, inbox)]) as worker:
            started.set_result(stop_soon)
            ended = asyncio.create_task(worker.ended())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
    except BaseException as error:  # noqa: BLE001 - it is raised in the test
        if started.done():
            inbox._end(error)
        else:
            started.set_exception(error)


def _transport(settings: RunSettings, inbox: MailroomInbox) -> Transport:
    """SMTP, which tells the inbox the action of each mail: a notice has no link that would show it."""
    from mailroom.transports.smtp import SmtpTransport

    class NotingTransport(SmtpTransport):
        def send(self, messages: Sequence[Message]) -> list[Answer]:
            answers = super().send(messages)
            inbox._note(messages, answers)
            return answers

    return NotingTransport(settings.sender, cast("SmtpServer", settings.sender.transport))


def _received(message: Message, kept: KeptMail) -> ReceivedMail:
    from mailroom.inbox.kinds import language_of
    from mailroom.inbox.links import find_links
    from mailroom.inbox.messages import read_message

    rendered = read_message(kept.message)
    links = tuple(link.url for link in find_links(rendered))
    link = next((url for url in links if message.token in url), "") if message.action.has_link else ""
    shown = rendered.text + rendered.html
    return ReceivedMail(
        to=message.email,
        action=message.action.name,
        locale=language_of(rendered) or "",
        subject=rendered.subject,
        text=rendered.text,
        html=rendered.html,
        links=links,
        link=link,
        token=message.token if link else "",
        code=message.code if message.code and message.code in shown else "",
    )


def _matches(mail: ReceivedMail, to: str | None, action: str | None) -> bool:
    return (to is None or mail.to.lower() == to.lower()) and action in {None, mail.action}


@pytest.fixture
def mailroom_database_url() -> str:
    """The address of the application's test database; override it, or set MAILROOM_DATABASE_URL."""
    url = os.environ.get("MAILROOM_DATABASE_URL", "")
    if not url:
        pytest.fail(
            "MAILROOM_DATABASE_URL is not set; set it to the application's test database, or override the"
            " fixture mailroom_database_url",
            pytrace=False,
        )
    return url


@pytest.fixture
def mailroom_inbox(mailroom_database_url: str) -> Iterator[MailroomInbox]:
    """An inbox, and a worker on `mailroom_database_url` that sends to it."""
    with running_inbox(mailroom_database_url, os.environ) as inbox:
        yield inbox
