"""``rejected.csv``: what is set aside is there, whole, private, and can be replayed."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailroom.errors import ReplayError, SetAsideError, WireError
from mailroom.sender.rejected import FILE_NAME, Rejected, RejectedRow, read, remove_lines
from mailroom.wire import Message, encode
from support import commands
from support.messages import CATALOGUE, message, messages

ANY_LINE = st.binary(max_size=200).filter(lambda line: b"\n" not in line)


def replay(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return commands.run_bytes("replay", *map(str, arguments), env={})


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.builds(RejectedRow, st.just("malformed"), st.text(st.characters(codec="utf-8")), ANY_LINE)
    )
)
def test_any_line_comes_back_byte_for_byte(tmp_path: Path, rows: list[RejectedRow]) -> None:
    rejected = Rejected(tmp_path)
    rejected.path.unlink()
    for row in rows:
        rejected.add([row])
    expected = [row._replace(reason=" ".join(row.reason.split())) for row in rows]
    assert expected == ([row for _, row in read(rejected.path)] if rows else [])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(messages(), min_size=1, max_size=8))
def test_recipients_come_back_as_messages(tmp_path: Path, batch: list[Message]) -> None:
    rejected = Rejected(tmp_path)
    rejected.path.unlink()
    rejected.add([RejectedRow.of(one, "rejected", "says SES") for one in batch])
    assert [[one] for one in batch] == [row.messages(CATALOGUE) for _, row in read(rejected.path)]


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    rejected = Rejected(tmp_path / "new" / "folder")
    rejected.add([RejectedRow.of(message(), "rejected", "x")])
    assert 0o600 == stat.S_IMODE(rejected.path.stat().st_mode)


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    rejected = Rejected(tmp_path)
    rejected.add([RejectedRow.of(message(1), "rejected", "x")])
    rejected.path.rename(tmp_path / "again.csv")
    rejected.add([RejectedRow.of(message(2), "rejected", "x")])
    assert [[message(1)]] == [row.messages(CATALOGUE) for _, row in read(tmp_path / "again.csv")]
    assert [[message(2)]] == [row.messages(CATALOGUE) for _, row in read(rejected.path)]


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "rejected.csv").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetAsideError, match=r"cannot write .*rejected\.csv"):
        Rejected(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetAsideError, match="Not a directory") as raised:
        Rejected(tmp_path / "file" / "output")
    assert "MAILROOM_SES_OUTPUT_PATH" in raised.value.hint


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    rejected = Rejected(tmp_path)
    rejected.add([RejectedRow.of(message(1), "rejected", "x")])
    before = rejected.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(SetAsideError, match="File too large"):
            rejected.add([RejectedRow.of(message(number), "rejected", "x") for number in range(5)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert before == rejected.path.read_bytes()
    rejected.add([RejectedRow.of(message(2), "rejected", "x")])
    assert [[message(1)], [message(2)]] == [row.messages(CATALOGUE) for _, row in read(rejected.path)]


def test_replay_gives_lines_for_the_sender(tmp_path: Path) -> None:
    rejected = Rejected(tmp_path)
    rejected.add([RejectedRow.of(message(number), "rejected", "says SES") for number in range(5)])
    rejected.add([RejectedRow.of(message(9), "expired", "not sent within 900 s")])
    done = replay(rejected.path, "--batch", "4")
    expected = encode([message(n) for n in range(4)]) + encode([message(4), message(9)])
    assert (0, expected, b"") == (done.returncode, done.stdout, done.stderr)
    only = replay(rejected.path, "--outcome", "expired")
    assert (0, encode([message(9)])) == (only.returncode, only.stdout)


def test_replay_tells_what_it_leaves_out(tmp_path: Path) -> None:
    rejected = Rejected(tmp_path)
    rejected.add(
        [
            RejectedRow("malformed", "line 1, …", b"nonsense \xff \r \x00"),
            RejectedRow.of(message(), "unsent", "x"),
        ]
    )
    done = replay(rejected.path)
    assert (65, encode([message()])) == (done.returncode, done.stdout)
    assert done.stderr.startswith(b"row 1 is left out: ")
    assert b"nonsense" not in done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"action,email\n1,2\n", b"does not begin with the header"),
        (b'time,outcome,reason,line\n"a"b\xff', b""),
    ],
)
def test_replay_refuses_what_is_no_such_file(tmp_path: Path, content: bytes, told: bytes) -> None:
    (tmp_path / "file.csv").write_bytes(content)
    done = replay(tmp_path / "file.csv")
    assert (65, b"") == (done.returncode, done.stdout)
    assert told in done.stderr
    assert b"Traceback" not in done.stderr


def test_replay_of_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="No such file"):
        next(read(tmp_path / "nothing.csv"))


@pytest.mark.parametrize(
    "torn", [b'"2026","rej"\n', b'"2026","rejected","half a rea', b'"2026","rejected"', b'"']
)
def test_a_torn_row_costs_no_other(tmp_path: Path, torn: bytes) -> None:
    rejected = Rejected(tmp_path)
    rejected.add([RejectedRow.of(message(1), "rejected", "x")])
    rejected.path.write_bytes(rejected.path.read_bytes() + torn)
    rejected.add([RejectedRow.of(message(2), "rejected", "x")])
    first, broken, last = [row for _, row in read(rejected.path)]
    assert ([message(1)], [message(2)]) == (first.messages(CATALOGUE), last.messages(CATALOGUE))
    with pytest.raises(WireError, match="not a row of this file"):
        broken.messages(CATALOGUE)


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "rejected.csv").touch(0o644)
    assert 0o600 == stat.S_IMODE(Rejected(tmp_path).path.stat().st_mode)


def test_a_pipe_in_its_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rejected.csv")
    with pytest.raises(SetAsideError, match="not a regular file"):
        Rejected(tmp_path)


def test_two_senders_may_share_a_folder(tmp_path: Path) -> None:
    both = [Rejected(tmp_path), Rejected(tmp_path)]

    def add(rejected: Rejected, first: int) -> None:
        for number in range(first, first + 100):
            rejected.add([RejectedRow.of(message(number), "rejected", "x")])

    threads = [threading.Thread(target=add, args=[one, at * 100]) for at, one in enumerate(both)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [tuple(row.messages(CATALOGUE)) for _, row in read(tmp_path / "rejected.csv")]
    assert {(message(number),) for number in range(200)} == set(found)
    assert 200 == len(found)


def test_a_torn_header_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "rejected.csv").write_bytes(b"time,outc")
    rejected = Rejected(tmp_path)
    rejected.add([RejectedRow.of(message(1), "rejected", "x")])
    assert [[message(1)]] == [row.messages(CATALOGUE) for _, row in read(rejected.path)]


def test_a_file_that_is_moved_away_while_it_is_waited_for_gets_no_row(tmp_path: Path) -> None:
    rejected = Rejected(tmp_path)
    rejected.add([RejectedRow.of(message(1), "rejected", "x")])
    with rejected.path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        adding = threading.Thread(target=rejected.add, args=[[RejectedRow.of(message(2), "rejected", "x")]])
        adding.start()
        rejected.path.rename(tmp_path / "again.csv")
    adding.join()
    assert [[message(1)]] == [row.messages(CATALOGUE) for _, row in read(tmp_path / "again.csv")]
    assert [[message(2)]] == [row.messages(CATALOGUE) for _, row in read(rejected.path)]


def test_an_interrupt_while_it_is_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = Rejected(tmp_path)
    rejected.add([RejectedRow.of(message(1), "rejected", "x")])
    before = rejected.path.read_bytes()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rejected.add([RejectedRow.of(message(2), "rejected", "x")])
    assert before == rejected.path.read_bytes()


def test_a_line_separator_in_a_login_divides_no_row_that_is_removed(tmp_path: Path) -> None:
    one = message(1)._replace(username="zo\u2028e")
    Rejected(tmp_path).add(
        [RejectedRow.of(one, "unsent", "stopped"), RejectedRow.of(message(2), "unsent", "stopped")]
    )
    assert 1 == remove_lines(tmp_path / FILE_NAME, lambda line: one.email in line)
    assert 1 == len(list(read(tmp_path / FILE_NAME)))
    assert message(2).token in (tmp_path / FILE_NAME).read_text()
    assert one.token not in (tmp_path / FILE_NAME).read_text()
