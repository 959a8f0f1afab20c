"""Standard input as lines: however it is chunked, whatever it is, and without losing a byte."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroom.sender.stdin import Input, Line


async def all_lines(lines: Input) -> list[Line]:
    found = []
    while (line := await lines.line()) is not None:
        found.append(line)
    return found


def read_chunked(chunks: list[bytes]) -> list[Line]:
    reader, writer = os.pipe()

    def write() -> None:
        for chunk in chunks:
            os.write(writer, chunk)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return asyncio.run(all_lines(Input(reader)))
    finally:
        thread.join()
        os.close(reader)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), st.binary(min_size=5000, max_size=9000)), max_size=12))
def test_any_chunking_of_any_bytes_gives_the_same_lines(chunks: list[bytes]) -> None:
    lines = read_chunked(chunks)
    whole = b"".join(chunks)
    assert whole == b"".join(line.content for line in lines)
    assert list(range(1, len(lines) + 1)) == [line.number for line in lines]
    assert all(line.content.endswith(b"\n") for line in lines[:-1])
    assert all(b"\n" not in line.content[:-1] for line in lines)


@pytest.mark.parametrize("content", [b"", b"a\n", b"a\nb", b"\n\n", b"x" * 100_000 + b"\ny\n"])
def test_a_file_is_read_to_its_end(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lines").write_bytes(content)
    with (tmp_path / "lines").open("rb") as file:
        lines = asyncio.run(all_lines(Input(file.fileno())))
    assert content.splitlines(True) == [line.content for line in lines]


def test_an_endless_line_is_cut_and_its_rest_is_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailroom.sender.stdin.MAX_LINE", 10_000)
    lines = read_chunked([b"x" * 30_000 + b"\nnext\n"])
    assert [(1, 12_288, False), (1, 12_288, True), (1, 5_425, True), (2, 5, False)] == [
        (line.number, len(line.content), line.is_rest) for line in lines
    ]


def test_what_was_read_ahead_can_be_had_at_the_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\nthree\nfo")
    lines = Input(reader)
    assert Line(1, b"one\n") == asyncio.run(lines.line())
    assert [Line(2, b"two\n"), Line(3, b"three\n"), Line(4, b"fo")] == lines.rest()
    assert b"" == lines.begun
    os.close(writer)
    os.close(reader)


def test_it_reads_no_line_ahead() -> None:
    """What was not asked for stays in the pipe, but for the rest of one small read."""
    reader, writer = os.pipe()
    os.write(writer, b"first\n" + b"x" * 20_000)
    lines = Input(reader)
    assert Line(1, b"first\n") == asyncio.run(lines.line())
    os.close(writer)
    left = b""
    while chunk := os.read(reader, 65536):
        left += chunk
    os.close(reader)
    assert 20_006 - 4096 == len(left)


def test_a_cancelled_wait_loses_nothing() -> None:
    reader, writer = os.pipe()

    async def interrupted() -> list[Line | None]:
        lines = Input(reader)
        os.write(writer, b"begun ")
        waiting = asyncio.create_task(lines.line())
        await asyncio.sleep(0)  # it reads what is there, and waits for more
        assert b"begun " == lines.begun
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        os.write(writer, b"and ended\n")
        os.close(writer)
        return [await lines.line(), await lines.line()]

    assert [Line(1, b"begun and ended\n"), None] == asyncio.run(interrupted())
    os.close(reader)


def test_it_can_stop_at_the_end_of_a_line() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x" * 5000 + b"\nnext\n")
    os.close(writer)

    async def run() -> None:
        lines = Input(reader)
        lines.reads_ahead = False
        assert Line(1, b"x" * 5000 + b"\n") == await lines.line()

    asyncio.run(run())
    assert b"next\n" == os.read(reader, 100)
    os.close(reader)
