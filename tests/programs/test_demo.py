"""The demonstration: the whole lifecycle, clicked in it; its counts are true, and nothing is left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import httpx
import psutil
import psycopg
import pytest
from playwright.sync_api import Page, expect

from mailroom.demo import letters
from mailroom.demo.folders import LOCK, OwnFolder, remove_leftovers
from mailroom.demo.letters import Letters
from mailroom.demo.postgres import FOLDER_PREFIX
from mailroom.demo.programs import RUN, DemoError, Programs
from mailroom.demo.stage import APP_PORT, INBOX_PORT, METRICS_PORT, QUEUE_PORT
from mailroom.inbox.server import InboxServer
from support.browser import (
    BrowserPages,
    accessibility_faults,
    browser_fixture,  # noqa: F401
    pages_fixture,  # noqa: F401
)

PATIENCE_S: Final = 120.0
PORTS: Final = {"inbox": INBOX_PORT, "application": APP_PORT, "queue": QUEUE_PORT, "metrics": METRICS_PORT}
# The eight people of the tour get these; Mallory gets none.
MAILS: Final = 16
BOUNCING: Final = "bounce@simulator.amazonses.com"
WRONG: Final = "Your address seems to be wrong"
PASSWORD: Final = "correct horse battery"
NEW_PASSWORD: Final = "staple and some more"
# Makes the terminal on its standard input its own, so that Ctrl-C reaches it.
ON_TERMINAL: Final = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
needs_setpriv = pytest.mark.skipif(
    not shutil.which("setpriv"), reason="needs setpriv (util-linux) to tie the programs to us"
)


class Demo:
    """``mailroom demo`` in a process of its own, with a folder; ``output`` grows while it runs."""

    def __init__(self, folder: Path, *options: str, terminal: bool = False) -> None:
        self.folder = folder
        self.output = ""
        self._grown = threading.Condition()
        command = ["-m", "mailroom", "demo", *options]
        self._screen, ours = os.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, *(["-c", ON_TERMINAL] if terminal else []), *command],
            env=os.environ | {"TMPDIR": str(folder)},
            stdin=ours if terminal else subprocess.DEVNULL,
            stdout=ours,
            stderr=ours,
            start_new_session=True,
        )
        os.close(ours)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.wait()
        os.close(self._screen)

    def wait_for(self, text: str) -> str:
        """Wait until it has printed a text; returns all that it has printed."""
        with self._grown:
            ended = self.process.poll
            self._grown.wait_for(lambda: text in self.output or ended() is not None, PATIENCE_S)
        assert text in self.output, self.output
        return self.output

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def press_ctrl_c(self) -> None:
        os.write(self._screen, b"\x03")

    def address(self, name: str) -> str:
        """The last address that it gave for something."""
        return str(re.findall(rf"^  {name} +(\S.*?)(?:  \(.*)?$", self.output, re.MULTILINE)[-1])

    def counts(self) -> tuple[int, ...]:
        """How many mails it says were due, sent and arrived."""
        said = "# mails were due, the ledger says that # are sent, and the inbox's API that # arrived"
        found = re.search(said.replace("#", "([0-9]+)"), self.output)
        assert found, self.output
        return tuple(map(int, found.groups()))

    def family(self) -> list[psutil.Process]:
        """All processes that it started, whatever started them."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def _read(self) -> None:
        with suppress(OSError):  # how a terminal says that nobody writes to it any more
            while data := os.read(self._screen, 65536):
                with self._grown:
                    self.output += data.decode().replace("\r\n", "\n")
                    self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()


@contextmanager
def new_folder() -> Iterator[Path]:
    """A folder for temporary files that the server's user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="roomy-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def roomy() -> Iterator[Path]:
    with new_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def staying() -> Iterator[Demo]:
    """One on a terminal, after the tour. The test that ends it is the last that takes it."""
    with new_folder() as folder, Demo(folder, "--signups", "7", terminal=True) as demo:
        demo.wait_for("Ctrl-C stops everything.")
        yield demo


def database_url(demo: Demo) -> str:
    """By the socket, as the command line that the demonstration names."""
    found = re.search(r"psql -h (\S+) -p ([0-9]+) -U postgres$", demo.address("database"))
    assert found
    return f"host={found[1]} port={found[2]} user=postgres"


def listens(address: str) -> bool:
    port = re.search(r":([0-9]+)(?:/|$)", address)
    assert port
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(port[1]))) == 0


def wait_until_gone(processes: list[psutil.Process], addresses: list[str]) -> None:
    """Fails with those that are still there in the end."""
    assert processes
    _, alive = psutil.wait_procs(processes, PATIENCE_S)
    assert [] == [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert [] == [address for address in addresses if listens(address)]


@pytest.mark.slow
def test_the_whole_lifecycle_clicked(staying: Demo, pages: BrowserPages) -> None:
    inbox = pages.open(staying.address("inbox"))
    expect(inbox.locator("#live")).to_have_text("Live")
    app = inbox.context.new_page()
    with psycopg.connect(database_url(staying), autocommit=True) as db:

        def state() -> tuple[object, ...] | None:
            query = (
                "SELECT a.status::text, count(consumed_at) FROM accounts a JOIN tokens t ON t.account = a.id"
                " WHERE a.email = 'zoe@example.com' GROUP BY a.status"
            )
            return db.execute(query).fetchone()

        app.goto(staying.address("application"))
        app.get_by_role("link", name="Sign up").first.click()
        fill(app, email="zoe@example.com", login="zoe", password=PASSWORD)
        expect(app.locator("h1")).to_have_text("Look for our mail")
        link = follow(inbox, "Activate your Acme account")
        address = link.url
        scan(address)
        assert ("provisioned", 0) == state()
        expect(link.locator("h1")).to_have_text("Activate your account")
        link.click("main button")
        expect(link.get_by_role("status")).to_have_text("Your account is active. You can sign in now.")
        assert ("active", 1) == state()
        app.goto(address)
        app.click("main button")
        expect(app.locator("h1")).to_have_text("This link was used before")

        app.goto(f"{staying.address('application')}/signin")
        app.get_by_role("link", name="Forgot your password?").click()
        fill(app, email="zoe@example.com")
        link = follow(inbox, "Set a new password for Acme")
        code = inbox.frame_locator("iframe").locator(".code").inner_text()
        address = link.url
        scan(address)
        assert ("active", 1) == state()
        fill(link, code=f"{(int(code) + 1) % 100_000:05}", password=NEW_PASSWORD)
        expect(link.get_by_role("alert")).to_contain_text("The code is wrong. Tries left: 4.")
        assert ("active", 1) == state()
        fill(link, code=code, password=NEW_PASSWORD)
        expect(link.get_by_role("status")).to_contain_text("Your password is changed")
        assert ("active", 2) == state()
        fill(link, email="zoe@example.com", password=NEW_PASSWORD)
        expect(link.locator("h1")).to_have_text("Hello zoe")
        link.select_option("#locale", "de")
        link.get_by_role("button", name="Save").click()
        expect(link.get_by_role("status")).to_have_text("From now on your mails are in this language.")
        link.get_by_role("button", name="Sign out").click()
        link.get_by_role("link", name="Sign in without a password").click()
        fill(link, email="zoe@example.com")
        link = follow(inbox, "Ihr Link zum Anmelden bei Acme")
        scan(link.url)
        assert ("active", 2) == state()
        link.click("main button")
        expect(link.locator("h1")).to_have_text("Hello zoe")
        assert ("active", 3) == state()
        app.goto(address)
        fill(app, code=code, password=PASSWORD)
        expect(app.locator("h1")).to_have_text("This link was used before")
    staying.wait_for("mail: zoe@example.com          Set a new password for Acme")
    assert all(url.startswith("http://127.0.0.1:") for url in pages.requests)
    pages.errors[:] = [error for error in pages.errors if "422" not in error and "409" not in error]


@pytest.mark.slow
def test_a_visitor_and_the_operator_hear_of_a_bounce(staying: Demo, pages: BrowserPages) -> None:
    """From the sign-up to SES's event and back to the page, then the right address, then the operator."""
    inbox = pages.open(staying.address("inbox"))
    expect(inbox.locator("#live")).to_have_text("Live")
    app = inbox.context.new_page()
    app.goto(f"{staying.address('application')}/signup")
    fill(app, email=BOUNCING, login="tim-o", password=PASSWORD)
    expect(app.locator("h1")).to_have_text(WRONG, timeout=30_000)
    expect(app.locator("main")).to_contain_text(BOUNCING)
    assert [] == accessibility_faults(app)

    # The next address bounces later, while the page waits. Nobody loads it anew.
    fill(app, email="mistyped@example.com")
    expect(app.locator("h1")).to_have_text("Look for our mail")
    inbox.locator(".row", has_text="mistyped@example.com").click()
    inbox.get_by_label("What SES reports next").select_option("Bounce")
    inbox.get_by_role("button", name="Publish").click()
    expect(app.locator("h1")).to_have_text(WRONG, timeout=30_000)
    with psycopg.connect(database_url(staying), autocommit=True) as db:
        query = (
            "SELECT extract(epoch FROM received_at)::float FROM mailroom.events"
            " WHERE kind = 'bounced' AND recipient = 'mistyped@example.com'"
        )
        ((received_s,),) = db.execute(query).fetchall()
    assert 1 > app.evaluate("performance.timeOrigin") / 1000 - received_s
    fill(app, email="tim-o@example.com")
    expect(app.locator("h1")).to_have_text("Look for our mail")
    link = follow(inbox, "Activate your Acme account", "tim-o@example.com")
    link.click("main button")
    expect(link.get_by_role("status")).to_have_text("Your account is active. You can sign in now.")
    fill(link, email="tim-o@example.com", password=PASSWORD)
    expect(link.locator("h1")).to_have_text("Hello tim-o")

    operator = inbox.context.new_page()
    operator.goto(staying.address("queue"))
    expect(operator.locator("#tiles")).to_contain_text("Bounced")
    operator.get_by_role("searchbox").fill(BOUNCING)
    operator.get_by_role("searchbox").press("Enter")
    story = operator.locator(".story", has_text="activation").last
    expect(story.locator(".badge")).to_have_text("bounced")
    expect(story).to_contain_text("the address takes no mail")
    expect(story).to_contain_text("550 5.1.1 user unknown")


def follow(inbox: Page, subject: str, recipient: str = "zoe@example.com") -> Page:
    """Where the link leads that is in a mail, once it shows in the list, which is not loaded anew."""
    inbox.evaluate("window.never = 'reloaded'")
    row = inbox.locator(".row", has_text=recipient).filter(has_text=subject)
    row.wait_for()
    assert "reloaded" == inbox.evaluate("window.never")
    row.click()
    expect(inbox.locator("h1")).to_have_text(subject)
    with inbox.expect_popup() as opened:
        inbox.locator(".links a").click()
    return opened.value


def scan(link: str) -> None:
    """What a scanner of mail does."""
    with httpx.Client(follow_redirects=True) as scanner:
        for method in ("HEAD", "GET", "GET"):
            assert 200 == scanner.request(method, link).status_code


def fill(page: Page, **fields: str) -> None:
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.click("main button")


@pytest.mark.slow
def test_what_it_counts_is_what_the_api_says_and_ctrl_c_stops_all_of_it(staying: Demo) -> None:
    inbox = staying.address("inbox")
    with psycopg.connect(database_url(staying), autocommit=True) as db:
        db.execute("INSERT INTO accounts (email, login) VALUES ('max@example.com', 'max')")
        staying.wait_for("mail: max@example.com")
        mails = httpx.get(f"{inbox}/api/mails").json()["mails"]
        assert len(mails) == httpx.get(f"{inbox}/api/counts").json()["accepted"]
        tour = [
            mail
            for mail in mails
            if not mail["recipient"].startswith(("max@", "zoe@", "tim-o@", "mistyped@", BOUNCING))
        ]
        assert staying.counts() == (len(tour),) * 3 == (MAILS + 8,) * 3
        assert (len(mails),) == db.execute("SELECT count(*) FROM mailroom.deliveries").fetchone()
    for mail in mails:
        assert mail["data"].get("secret", mail["id"]) not in staying.output

    family = staying.family()
    addresses = [staying.address(name) for name in PORTS]
    assert [True] * 4 == [listens(address) for address in addresses]
    staying.press_ctrl_c()
    assert 0 == staying.wait(), staying.output
    mine = len(mails) - len(tour)
    assert f"{len(mails)} mails arrived, {mine} of them since the tour ended." in staying.output
    wait_until_gone(family, addresses)
    assert [] == list(staying.folder.iterdir())


@pytest.mark.slow
def test_without_a_terminal_it_ends_and_ports_in_use_are_replaced(roomy: Path) -> None:
    with ExitStack() as stack:
        for port in PORTS.values():
            with suppress(OSError):  # somebody has it, which will do as well
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        demo = stack.enter_context(Demo(roomy, "--signups", "14"))
        assert 0 == demo.wait(), demo.output
    assert (MAILS + 16,) * 3 == demo.counts()
    assert "\nNothing was lost, nothing was sent twice.\n" in demo.output
    assert "Ctrl-C" not in demo.output
    assert_shown_as_in_the_readme(demo.output)
    for name, port in PORTS.items():
        assert f":{port}" not in demo.address(name)
        assert f"{demo.address(name)}  (port {port} is in use)\n" in demo.output
        assert not listens(demo.address(name))
    assert f"\n        {demo.address('application')}/activate?token=" in demo.output
    assert [] == list(roomy.iterdir())


def assert_shown_as_in_the_readme(output: str) -> None:
    """Every line that the README shows is printed, but for what differs from run to run."""

    def lines(text: str) -> set[str]:
        return set(re.sub(r"token=.*|[0-9]+", "", text).splitlines())

    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (shown,) = re.findall(r"```text\n(Linus.*?)```", readme, re.DOTALL)
    assert set() == lines(shown) - lines(output) - {"…", "  …"}


@pytest.mark.slow
@needs_setpriv
def test_killed_it_leaves_no_process_and_no_port(roomy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Demo(roomy) as demo:
        demo.wait_for("page: Your account is active")
        family = demo.family()
        names = " ".join(word for process in family for word in process.cmdline())
        for name in ("bin/postgres", "mailroom run", "mailroom.demo.signup", "mailroom console"):
            assert name in names
        demo.process.send_signal(signal.SIGKILL)
        demo.wait()
    wait_until_gone(family, [demo.address(name) for name in PORTS])
    monkeypatch.setattr(tempfile, "tempdir", str(roomy))
    assert 1 == len(list(roomy.iterdir()))
    remove_leftovers(FOLDER_PREFIX)  # as the next one does
    assert [] == list(roomy.iterdir())


@pytest.mark.slow
def test_when_a_program_dies_it_says_which_and_ends(roomy: Path) -> None:
    with Demo(roomy, "--stay") as demo:
        demo.wait_for("Ada signs up")
        family = demo.family()
        (run,) = [process for process in family if process.cmdline()[-2:] == ["mailroom", "run"]]
        run.kill()
        assert 1 == demo.wait(), demo.output
    assert "Error: mailroom run ended unexpectedly, with code -9; the end of its log:\n" in demo.output
    assert "run.started" in demo.output
    wait_until_gone(family, [demo.address(name) for name in PORTS])
    assert [] == list(roomy.iterdir())


def test_a_mail_that_does_not_come_is_an_error_with_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "PATIENCE_S", 0.1)
    with ExitStack() as stack, InboxServer() as inbox:
        (tmp_path / "idle.py").write_text("import time; print('last words', flush=True); time.sleep(600)")
        programs = Programs(stack, tmp_path, os.environ | {"PYTHONPATH": str(tmp_path)})
        programs.serve(RUN, ["idle"], {}, port=0, ready="last words")
        with pytest.raises(DemoError, match=r"no activation mail to a@b arrived within .*\n  last words"):
            Letters(inbox.url, programs).wait_for("a@b", "activation")


def test_a_program_that_does_not_start_shows_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import sys; print('last words'); sys.exit(3)")
    with ExitStack() as stack:
        programs = Programs(stack, tmp_path, os.environ | {"PYTHONPATH": str(tmp_path)})
        with pytest.raises(DemoError, match=r"x ended unexpectedly, with code 3; .*\n  last words"):
            programs.serve("x", ["broken"], {}, port=0, ready="never")


def test_a_folder_is_a_leftover_once_its_process_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = OwnFolder("demo-")
    (tmp_path / "demo-not-marked").mkdir()
    for name in ("demo-ended", "other"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / LOCK).touch()
    (tmp_path / "demo-link").symlink_to(tmp_path / "other")
    remove_leftovers("demo-")
    assert {ours.path.name, "demo-not-marked", "demo-link", "other"} == {
        path.name for path in tmp_path.iterdir()
    }
    assert (tmp_path / "other" / "data").is_dir()
    ours.remove()
    assert not ours.path.exists()
