"""Saved answers: whole, without credentials, and not without end."""

from __future__ import annotations

import logging
import stat
import threading
from pathlib import Path

import pytest

from mailroom.transports import saved_answers
from mailroom.transports.saved_answers import SavedAnswers

HEADERS = {"Content-Type": "text/xml", "x-amzn-RequestId": "1"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.http"))


def test_an_answer_is_saved_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    body = bytes(range(256)) + "é".encode()
    SavedAnswers(tmp_path / "new", "ses").save("activation", 503, HEADERS, body)
    (path,) = (tmp_path / "new").iterdir()
    assert (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/xml\r\nx-amzn-RequestId: 1\r\n\r\n" + body
        == (path.read_bytes())
    )
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_status_without_a_name_is_saved_too(tmp_path: Path) -> None:
    SavedAnswers(tmp_path, "ses").save("activation", 599, {}, b"")
    (path,) = tmp_path.iterdir()
    assert b"HTTP/1.1 599\r\n\r\n" == path.read_bytes()


def test_credentials_are_blotted_out_wherever_they_stand(tmp_path: Path) -> None:
    secrets = ["AKIA12", "s3cr3t/+", None, "", "i"]
    headers = {"X-Echo": "AKIA12"}
    SavedAnswers(tmp_path, "ses").save("activation", 400, headers, b"AKIA12 with s3cr3t/+", secrets)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert b"AKIA1" not in content
    assert b" with " in content  # what is very short stands in other words
    assert b"s3cr3t" not in content
    assert 3 == content.count(b"[redacted]")


def test_a_code_is_blotted_out_where_it_is_a_word(tmp_path: Path) -> None:
    body = b"near 36829 (36829) in 136829 or a36829, not 36828"
    SavedAnswers(tmp_path, "ses").save("password_recovery", 400, {}, body, ["36829"])
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().endswith(b"near [redacted] ([redacted]) in 136829 or a36829, not 36828")


def test_the_oldest_go_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saved_answers, "MAX_FILES", 3)
    keeper = SavedAnswers(tmp_path, "ses")
    (tmp_path / "rejected.csv").touch()
    seen = []
    for number in range(5):
        keeper.save("activation", 500, {}, str(number).encode())
        seen += [name for name in names(tmp_path) if name not in seen]
    assert seen[2:] == names(tmp_path)
    assert (tmp_path / "rejected.csv").exists()
    assert ["answers.removed"] * 2 == [vars(record).get("event") for record in caplog.records]


def test_the_oldest_go_when_they_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_answers, "MAX_BYTES", 1000)
    keeper = SavedAnswers(tmp_path, "ses")
    for _ in range(4):
        keeper.save("activation", 500, {}, b"x" * 400)
    assert 2 == len(names(tmp_path))
    keeper.save("activation", 500, {}, b"x" * 5000)
    assert 1 == len(names(tmp_path))  # the newest stays, whatever its size


def test_a_folder_that_takes_nothing_costs_the_file_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "file").touch()
    keeper = SavedAnswers(tmp_path / "file" / "output", "ses")
    keeper.save("activation", 500, {}, b"")
    keeper.save("activation", 500, {}, b"")
    assert ["answers.not_saved"] == [vars(record).get("event") for record in caplog.records]


def test_a_huge_answer_is_cut_and_says_so(tmp_path: Path) -> None:
    body = b"y" * (1024 * 1024 - 10) + b"s3cr3t-that-straddles-the-cut" + b"z" * 5_000_000
    SavedAnswers(tmp_path, "ses").save("activation", 500, {}, body, ["s3cr3t-that-straddles-the-cut"])
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert len(content) < 1_100_000
    assert content.endswith(f"[cut here: the body had {len(body)} bytes]\n".encode())
    assert b"s3cr3t" not in content


def test_several_threads_may_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saved_answers, "MAX_FILES", 5)
    keeper = SavedAnswers(tmp_path, "ses")

    def save() -> None:
        for _ in range(50):
            keeper.save("activation", 500, {}, b"x")

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 5 == len(names(tmp_path))
    assert {"answers.removed"} == {vars(record).get("event") for record in caplog.records}
