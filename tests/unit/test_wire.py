"""The line: the reference's bytes, and nothing that was not encoded."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailroom.actions import Action
from mailroom.errors import UnknownAction, WireError
from mailroom.wire import Message, decode, encode, encode_all, encode_either, split_line
from support.messages import ACTIVATION, CATALOGUE, decoded

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "reference.json").read_text())
TOKEN = "A" * 86
CONTROLS = [chr(number) for number in [*range(0x20), *range(0x7F, 0xA0)]]

texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1) | st.text(
    'ab,"\u2028\u2029 \ufeff\\', min_size=1, max_size=8
)
messages = st.builds(
    lambda *fields: Message(*fields),
    st.sampled_from(list(CATALOGUE.values())),
    texts,
    texts,
    st.from_regex("[A-Za-z0-9_-]{86}", fullmatch=True),
    st.from_regex("[0-9]{5}", fullmatch=True).filter(str.isascii),
)
batches = st.lists(messages, min_size=1, max_size=5)
rich = st.builds(
    lambda one, login, locale, data, lifetime: one._replace(
        username=login, locale=locale, data=data, expires_in_s=lifetime
    ),
    messages,
    texts | st.just(""),
    st.sampled_from(["", "de", "pt-BR", "zh_Hant-TW"]),
    st.dictionaries(texts, texts | st.just(""), max_size=3),
    st.none() | st.integers(0, 10**12),
)


def message(username: str = "u", email: str = "u@example.com", **other: Any) -> Message:
    return Message(ACTIVATION, email, username, TOKEN, "12345")._replace(**other)


def test_the_references_lines_come_out_byte_for_byte() -> None:
    rows = [
        Message(CATALOGUE[row["action"]], row["email"], row["login"], row["token"], row["code"])
        for row in VECTORS["rows"]
    ]
    lines = [encode(rows[:10]), encode(rows[10:])]
    assert [line + "\n" for line in VECTORS["lines"]] == [line.decode() for line in lines]
    assert rows == [row for line in lines for row in decoded(line)]


@settings(deadline=None)
@given(batches)
def test_what_is_encoded_is_decoded(batch: list[Message]) -> None:
    line = encode(batch)
    assert 1 == line.count(b"\n")
    assert batch == decoded(line)


@settings(deadline=None)
@given(st.lists(rich, min_size=1, max_size=5))
@example([Message(ACTIVATION, "a@b", "", TOKEN, "12345", "de-AT", {"inviter": '"}],\u2028\\'}, 0)])
def test_json_carries_every_message(batch: list[Message]) -> None:
    line = encode(batch, "json")
    assert (1, b"\n") == (line.count(b"\n"), line[-1:])
    assert batch == decoded(line)
    assert batch == decoded(encode_either(batch))
    assert json.loads(line)["mails"][0]["action"] == batch[0].action.number


def test_a_line_is_csv_as_long_as_that_carries_it() -> None:
    plain, german = message(), message(locale="de")
    assert encode([plain]) == encode_either([plain])
    assert encode([plain, german], "json") == encode_either([plain, german])


@pytest.mark.parametrize(
    "more",
    [{"locale": "de"}, {"data": {"inviter": "Anna"}}, {"expires_in_s": 60}],
    ids=str,
)
def test_what_five_fields_cannot_carry_is_refused(more: dict[str, Any]) -> None:
    assert not message(**more).fits_csv
    with pytest.raises(WireError, match="five fields do not hold them"):
        encode([message(**more)])


def as_json(**changed: object) -> bytes:
    mail = {"action": 1, "email": "a@b", "login": "c", "token": TOKEN, "code": "12345"} | changed
    return json.dumps({"mails": [mail]}).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{\n", "column 2: not JSON"),
        (b'{"mails": []}\n', "0 mails, and a line has 1 to 10000"),
        (b'{"mails": {}}\n', 'not an object with the list "mails" and nothing else'),
        (b'{"mails": [], "more": 1}\n', 'not an object with the list "mails" and nothing else'),
        (b'{"mails": [], "mails": []}\n', "a key is repeated"),
        (b'{"mails": [1]}\n', "mail 1: not an object"),
        (b'{"mails": ' + b"[" * 100_000 + b"\n", "not JSON"),
        (b'{"mails": [' + b"9" * 5000 + b"]}\n", "not JSON"),
        (as_json(action=99), "mail 1: action: not the number of an action"),
        (as_json(action="1"), "mail 1: action: not the number of an action"),
        (as_json(action=True), "mail 1: action: not the number of an action"),
        (as_json(email=""), "mail 1: email: empty"),
        (as_json(email=1), "mail 1: email, login, token, code or locale: not text"),
        (as_json(login="a\tb"), "mail 1: login: holds a control character"),
        (as_json(login="\ud800"), "mail 1: login: not valid Unicode"),
        (as_json(token="x"), "mail 1: secret: not a token"),
        (as_json(code="1"), "mail 1: code: not five digits"),
        (as_json(locale="d"), "mail 1: locale: not a language, such as de or pt-BR"),
        (as_json(locale="de" + "-x" * 17), "mail 1: locale: not a language, such as de or pt-BR"),
        (as_json(data=[]), "mail 1: data: not an object of texts"),
        (as_json(data={"n": 1}), "mail 1: data: not an object of texts"),
        (as_json(data={"n": "\n"}), "mail 1: data: n: holds a control character"),
        (as_json(data={"n": "x" * 16_384}), "mail 1: data: larger than 16384 bytes"),
        (as_json(expires_in_s=-1), "mail 1: expires_in_s: not a number of seconds"),
        (as_json(expires_in_s=True), "mail 1: expires_in_s: not a number of seconds"),
        (as_json(expires_in_s=1.5), "mail 1: expires_in_s: not a number of seconds"),
        (as_json(subject="x"), "mail 1: it has a key that no mail has"),
    ],
)
def test_json_at_fault_names_the_mail_and_the_key(line: bytes, fault: str) -> None:
    with pytest.raises(WireError) as refused:
        decoded(line)
    assert fault == str(refused.value)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(rich | messages, min_size=1, max_size=5))
def test_a_line_can_be_divided_into_its_messages(batch: list[Message]) -> None:
    parts = split_line(encode_either(batch))
    assert [[one] for one in batch] == [decoded(part) for part in parts]


def test_an_unknown_action_is_told_apart() -> None:
    line = encode([message("a"), message('b,"', action=CATALOGUE["magic_link"]), message("c")])
    with pytest.raises(UnknownAction):
        decode(line, {"activation": ACTIVATION})
    assert [b"1,", b"3,", b"1,"] == [part[:2] for part in split_line(line)]


def test_a_line_with_half_a_surrogate_pair_is_divided() -> None:
    line = b'{"mails": [{"action": 99, "email": "\\ud800@x"}, {"action": 1}]}\n'
    for part in split_line(line):
        with pytest.raises(WireError):
            decode(part, CATALOGUE)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(rich, min_size=1, max_size=3), st.integers(0, 600), st.binary(max_size=3))
def test_damaged_json_yields_only_what_can_be_written(batch: list[Message], at: int, patch: bytes) -> None:
    line = encode(batch, "json")
    try:
        found = decoded(line[:at] + patch + line[at + len(patch) :])
    except WireError:
        return
    assert found == decoded(encode(found, "json"))


@pytest.mark.slow
@settings(deadline=None)
@given(st.binary() | batches.map(encode), st.integers(0, 2000), st.binary(max_size=3))
@example(b'1,"a""b",c', 0, b"")
@example(b"\xff\n", 0, b"")
@example(b"\n", 0, b"")
def test_arbitrary_bytes_yield_only_what_the_encoder_writes(line: bytes, at: int, patch: bytes) -> None:
    damaged = line[:at] + patch + line[at + len(patch) :]
    try:
        batch = decoded(damaged)
    except WireError:
        return
    assert damaged == encode(batch)


@pytest.mark.parametrize(
    "login", ["a,1,x@y,z", '"', '""', ",", 'a"b', "x,1\\n2", f"x,{TOKEN},12345,1,evil@example.com,evil"]
)
def test_a_hostile_login_forges_no_row(login: str) -> None:
    batch = [message("before"), message(login), message("after")]
    assert batch == decoded(encode(batch))


@pytest.mark.parametrize("field", ["email", "username"])
def test_control_characters_are_refused_and_not_shown(field: str) -> None:
    for control in CONTROLS:
        with pytest.raises(WireError, match=f"^{field}: holds a control character$"):
            encode([message(**{field: f"peter{control}pan"})])


@pytest.mark.parametrize("field", ["email", "username"])
def test_empty_fields_and_half_surrogates_are_refused(field: str) -> None:
    with pytest.raises(WireError, match=f"^{field}: empty$"):
        encode([message(**{field: ""})])
    with pytest.raises(WireError, match=f"^{field}: not valid Unicode$"):
        encode([message(**{field: "peter\ud800pan"})])


def test_an_empty_batch_is_no_line() -> None:
    with pytest.raises(WireError, match="at least one message"):
        encode([])


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"token": "A" * 85}, "secret: not a token"),
        ({"token": "A" * 85 + ","}, "secret: not a token"),
        ({"token": "A" * 86 + "\n"}, "secret: not a token"),
        ({"code": "1234"}, "code: not five digits"),
        ({"code": "١٢٣٤٥"}, "code: not five digits"),
    ],
)
def test_what_is_not_a_message_is_refused(changed: dict[str, str], fault: str) -> None:
    with pytest.raises(WireError, match=f"^{fault}$"):
        encode([message(**changed)])


GOOD = f"1,a@b,c,{TOKEN},12345"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, f"column {len(GOOD) + 1}: the line is cut off"),
        ("\n", "column 1: 1 fields, not a multiple of 5"),
        (f"{GOOD},\n", f"column {len(GOOD) + 2}: 6 fields, not a multiple of 5"),
        (f"{GOOD},1,a@b\n", f"column {len(GOOD) + 7}: 7 fields, not a multiple of 5"),
        (f"0{GOOD[1:]}\n", "column 1: action: not the number of an action"),
        (f"01{GOOD[1:]}\n", "column 1: action: not the number of an action"),
        (f"99{GOOD[1:]}\n", "column 1: action: not the number of an action"),
        (f"1,,c,{TOKEN},12345\n", "column 3: email: empty"),
        (f"1,a@b,,{TOKEN},12345\n", "column 7: username: empty"),
        (f"1,a@b,c,{TOKEN[1:]},12345\n", "column 9: secret: not a token"),
        (f"1,a@b,c,{TOKEN},1234x\n", "column 96: code: not five digits"),
        (f'1,"a@b",c,{TOKEN},12345\n', "column 3: a field is quoted without need"),
        (f'1,a"@b,c,{TOKEN},12345\n', "column 3: a field is quoted wrongly"),
        (f'1,"a,b,c,{TOKEN},12345\n', "column 3: a field is quoted wrongly"),
        (f'1,"a,"b,c,{TOKEN},12345\n', "column 3: a field is quoted wrongly"),
        (f"1,a@b,c\r,{TOKEN},12345\n", "column 8: a control character"),
        (f"1,a@b,c\x85,{TOKEN},12345\n", "column 8: a control character"),
        (f"{GOOD}\r\n", f"column {len(GOOD) + 1}: a control character"),
        (f"{GOOD}\n{GOOD}\n", f"column {len(GOOD) + 1}: a control character"),
    ],
)
def test_a_line_at_fault_names_the_column(text: str, fault: str) -> None:
    with pytest.raises(WireError) as refused:
        decoded(text.encode())
    assert fault == str(refused.value)


def test_bytes_that_are_not_utf_8_name_the_byte() -> None:
    with pytest.raises(WireError, match=r"^byte 4: not UTF-8$"):
        decoded(b"1,a\xff@b\n")


def test_a_message_shows_no_secret() -> None:
    shown = repr([message("peter")])
    assert not [part for part in (TOKEN, "12345", "peter", "example.com") if part in shown]


def test_a_line_of_quotes_or_commas_is_refused_in_little_memory() -> None:
    """In a process of its own, whose memory is limited."""
    script = """
import resource
from mailroom.errors import WireError
from mailroom.actions import load_actions
from mailroom.wire import decode
resource.setrlimit(resource.RLIMIT_AS, (900 * 2**20, 900 * 2**20))
for line in (b'"' + b'""' * 2**23 + b"\\n", b"," * 2**24 + b"\\n", b'"' + b"x" * 2**24 + b"\\n"):
    try:
        decode(line, load_actions())
    except WireError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert 3 == len(done.stdout.splitlines())


def test_a_batch_has_a_limit() -> None:
    good = Message(ACTIVATION, "a@b.example", "a", "A" * 86, "12345")
    assert [good] * 10_000 == decoded(encode([good] * 10_000))
    with pytest.raises(WireError, match="at most 10000"):
        encode([good] * 10_001)
    with pytest.raises(WireError, match="more than 10000"):
        decoded(encode([good] * 10_000)[:-1] + b"," + encode([good]))


anything = st.text(max_size=5) | texts
rows = st.lists(
    st.tuples(st.sampled_from(list(CATALOGUE.values())), anything, anything, st.just(TOKEN), st.just("12345"))
    | messages.map(lambda one: one[:5]),
    max_size=5,
)


@pytest.mark.slow
@settings(deadline=None)
@given(rows)
def test_many_are_encoded_as_one_is(batch: list[tuple[Action, str, str, str, str]]) -> None:
    columns = list(zip(*batch, strict=True)) or [()] * 5
    try:
        for row in batch:
            encode([Message(*row)])
    except WireError:
        with pytest.raises(WireError):
            encode_all(*columns)
    else:
        fields = [[str(action.number), *rest] for action, *rest in batch]
        assert fields == list(csv.reader(encode_all(*columns), strict=True))
