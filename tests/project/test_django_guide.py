"""docs/how-to/django.md is followed command by command, in ten minutes at most."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from psycopg.conninfo import conninfo_to_dict

from mailroom.demo.postgres import PostgresServer, free_port
from project.test_django import PASSWORD
from project.test_docs import shell
from project.test_site import ADDRESS, DOCS, blocks, real_curl, repository
from support.django_project import submit
from support.image import OFFLINE

pytestmark = pytest.mark.slow

GUIDE = (DOCS / "how-to" / "django.md").read_text()
TEN_MINUTES_S = 600
# In the commands, where the reader goes on in the browser.
BROWSER = "echo over to the browser\nmkfifo ../back\ncat ../back\n"


def commands(server: PostgresServer, repository: Path, inbox: str, project: str) -> str:
    """The guide's commands, with its additions to files in between, and what differs on this machine."""
    guide, _, _ = GUIDE.partition("\n## What changes a user")
    script = 'trap "echo the end" EXIT\nsudo() { shift 2; "$@"; }\n'
    for said, code in re.findall(r"(?:(At the end of `\S+`):\n\n)?```\w+\n(.*?)```", guide, re.DOTALL):
        if said:
            script += f"cat >> {said.split('`')[1]} <<'END'\n{code}END\n"
        else:
            script += (BROWSER if "mailroom why" in code else "") + code
    assert ADDRESS in script
    assert "<this repository>" in script
    script = script.replace(ADDRESS, f"acme@127.0.0.1:{conninfo_to_dict(server.url())['port']}/app")
    script = script.replace("8025", inbox).replace("8000", project)
    return script.replace("<this repository>", str(repository))


def follow_the_link(browser: httpx.Client, inbox: str, action: str, **typed: str) -> str:
    """Read the mail in the inbox and submit the page that its link opens."""
    query = {"recipient": "zoe@example.com", "action": action}
    found = httpx.get(f"http://127.0.0.1:{inbox}/api/mails/wait", params=query, timeout=60).json()
    mail = found["mails"][-1]
    codes = re.findall(r"^\d{5}$", mail["text"], re.MULTILINE)
    return submit(browser, mail["links"][0]["url"], **({"code": codes[0]} if codes else {}), **typed).text


def read_until(last: str, process: subprocess.Popen[bytes]) -> str:
    """What a shell prints up to a line, or up to its end."""
    assert process.stdout
    printed = ""
    for line in process.stdout:
        printed += line.decode()
        if line.decode() in {last, "the end\n"}:
            break
    return printed


@pytest.mark.timeout(TEN_MINUTES_S)
def test_the_guide_takes_ten_minutes(own_server: PostgresServer, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    inbox, project = str(free_port()), str(free_port())
    script = commands(own_server, repository(tmp_path / "repository"), inbox, project)
    server = conninfo_to_dict(own_server.url())
    superuser = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server["port"]),
        "PGUSER": str(server["user"]),
        "PGPASSWORD": str(server.get("password") or ""),
        "PGDATABASE": "postgres",
    }
    # A reader's shell has no environment active: what the guide types must be in the one that it makes.
    path = real_curl().get("PATH", "").replace(f"{Path(sys.executable).parent}:", "")
    started = time.monotonic()
    with shell(script, here, **superuser, **({"PATH": path} if path else {})) as process:
        printed = read_until("over to the browser\n", process)
        if "over to the browser" not in printed:
            log = (here / "log").read_text()
            if any(word in log for word in OFFLINE):
                pytest.skip("the package index does not answer")
            pytest.fail(printed + log)
        transport = httpx.HTTPTransport(retries=10)
        url = f"http://127.0.0.1:{project}"
        with httpx.Client(base_url=url, timeout=60, follow_redirects=True, transport=transport) as browser:
            person = {"username": "zoe", "email": "zoe@example.com"}
            submit(browser, "/sign-up", **person, password1=PASSWORD, password2=PASSWORD)
            assert "Your account is active" in follow_the_link(browser, inbox, "activation")
            submit(browser, "/password_reset/", email="zoe@example.com")
            new = {"new_password1": PASSWORD + "!", "new_password2": PASSWORD + "!"}
            assert "Your password is set" in follow_the_link(browser, inbox, "password_recovery", **new)
        (here / "back").write_text("\n")
        printed += read_until("the end\n", process)
    assert TEN_MINUTES_S > time.monotonic() - started
    assert "public.auth_user" in printed
    assert re.search(r"^sent: .*\n  token \d+: password_recovery for zoe", printed, re.MULTILINE), printed


def test_every_block_of_the_guide_is_used() -> None:
    for name in re.findall(r"`(mailroom/\w+\.html)`", GUIDE):
        assert (DOCS.parent / "src/mailroom/contrib/django/templates" / name).exists()
    for _, code in blocks(GUIDE, "python"):
        compile(code, "django.md", "exec")
