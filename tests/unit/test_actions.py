"""``actions.toml``: what it may say, and that each mistake is named with its table and key."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mailroom
from mailroom.action_table import RESERVED
from mailroom.action_text import table, whole_file
from mailroom.actions import FILE_NAME, Action, Limit, clashes, load_actions, load_catalogue, parse_catalogue
from mailroom.errors import ActionsError
from mailroom.settings import misspelt

JOIN = '[join]\nnumber = 30\nprefix = "/join"\n'
CATALOGUE = {
    "activation": (1, "/activate"),
    "password_recovery": (2, "/recover"),
    "magic_link": (3, "/magic-link"),
    "email_change": (4, "/change-email"),
    "invitation": (5, "/accept-invitation"),
    "reauthentication": (6, "/reauthenticate"),
    "password_changed": (7, "/password-changed"),
    "email_changed": (8, "/email-changed"),
    "phone_changed": (9, "/phone-changed"),
    "identity_linked": (10, "/identity-linked"),
    "identity_unlinked": (11, "/identity-unlinked"),
    "mfa_added": (12, "/mfa-added"),
    "mfa_removed": (13, "/mfa-removed"),
    "new_sign_in": (14, "/new-sign-in"),
    "account_deleted": (15, "/account-deleted"),
}

names = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=20).map(lambda n: f"a{n}")
fields = names.filter(lambda name: name not in RESERVED and not name.endswith("_html"))
prefixes = st.text(string.ascii_letters + string.punctuation, min_size=1, max_size=62).map(
    lambda text: b"/" + text.encode()
)
durations = st.integers(1, 3650 * 86_400).filter(lambda seconds: seconds < 10**7 or seconds % 60 == 0)


def read(text: str) -> dict[str, Action]:
    return parse_catalogue(text.encode(), "x", reserved=load_actions()).actions


def fault(text: str | bytes) -> str:
    with pytest.raises(ActionsError) as refused:
        parse_catalogue(text if isinstance(text, bytes) else text.encode(), "x", reserved=load_actions())
    assert refused.value.hint
    return str(refused.value)


def test_numbers_and_prefixes_of_the_catalogue_never_change() -> None:
    found = {name: (action.number, action.prefix.decode()) for name, action in load_actions().items()}
    assert CATALOGUE == found
    assert ("activationv1", "passwordrecoveryv1") == tuple(
        load_actions()[name].template for name in ("activation", "password_recovery")
    )


def test_most_keys_have_defaults() -> None:
    assert {"join": Action("join", 30, b"/join")} == read(JOIN)
    assert ("login", "secret", "expires_in") == read(JOIN)["join"].shown


def test_every_key_is_read() -> None:
    text = JOIN + (
        'account = "provisioned"\nlink = false\ncode = true\nlifetime = "7d"\nlane = "bulk"\n'
        'limit = "5 in 15m"\nwhen_expired = "renew"\n'
    )
    own = Action(
        "join", 30, b"/join", "provisioned", has_link=False, needs_code=True, lifetime_s=604_800, lane="bulk",
        limit=Limit(5, 900), renews=True,
    )  # fmt: skip
    assert {"join": own} == read(text)
    assert ("login", "code", "expires_in", "inviter") == read(f'{text}fields = ["inviter"]')["join"].shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"\xff", "'x' is not UTF-8"),
        ("[join", "'x' is not TOML: "),
        (
            'language = "deutsch!"\n',
            "language: 'deutsch!' is not a language; write a tag such as en",
        ),
        ("join = 1\n", "join: it is not a table; write [join], and its keys below"),
        ("[Join]\n", "[Join] the name has other characters than a-z, 0-9 and _"),
        ("[join]\n", "[join] number: it is missing; write one from 30 to 99"),
        ("[join]\n", "[join] prefix: it is missing; write / and up to 62 ASCII characters"),
        (JOIN.replace("30", "100"), "[join] number: 100 is not a number; write one from 30 to 99"),
        (JOIN.replace("30", "true"), "[join] number: True is not a number"),
        (JOIN.replace("30", "7"), "[join] number: 7 is password_changed in the catalogue; write one from 30"),
        (JOIN.replace("30", "29"), "[join] number: 29 is reserved; write one from 30 to 99"),
        (JOIN.replace("/join", "join"), "[join] prefix: 'join' is not a prefix"),
        (JOIN.replace("/join", "/jö"), "[join] prefix: '/jö' is not a prefix"),
        (JOIN + "link = 1\n", "[join] link: 1 is neither true nor false"),
        (JOIN + 'account = "suspended"\n', "account: 'suspended' is not one of provisioned, active, none"),
        (
            JOIN + 'lifetime = "15 min"\n',
            "lifetime: '15 min' is not a duration up to 3650d; write one",
        ),
        (JOIN + 'lifetime = "9999d"\n', "lifetime: '9999d' is not a duration"),
        (JOIN + "lifetime = 15\n", "lifetime: 15 is not a duration"),
        (JOIN + 'limit = "5"\n', """limit: '5' is not a limit; write one such as "5 in 15m\""""),
        (JOIN + 'limit = "0 in 15m"\n', "limit: '0 in 15m' is not a limit"),
        (JOIN + 'fields = "inviter"\n', "fields: 'inviter' is not a list of names"),
        (JOIN + 'fields = ["Inviter"]\n', "fields: 'Inviter' has other characters than"),
        (JOIN + 'fields = ["a", "a"]\n', "fields: a name is repeated"),
        (JOIN + 'fields = ["secret"]\n', "fields: 'secret' has a meaning of its own in templates"),
        (JOIN + 'fields = ["x_html"]\n', "fields: 'x_html' has a meaning of its own in templates"),
        (JOIN + 'when_expired = "keep"\n', "when_expired: 'keep' is not one of drop, renew"),
        (JOIN + "activates = true\n", 'only an action with account = "provisioned" activates accounts'),
        (JOIN + "nubmer = 1\n", "[join] nubmer: unknown; the keys are number, prefix, account, link"),
        (JOIN + '[enter]\nnumber = 30\nprefix = "/enter"\n', "[enter] number: 30 is also join's"),
        (
            JOIN + '[enter]\nnumber = 31\nprefix = "/join/x"\n',
            "prefix: one of /join/x and join's /join",
        ),
        (JOIN + '[enter]\nnumber = 31\nprefix = "/jo"\n', "[enter] prefix: one of /jo and join's /join"),
        (
            JOIN + '[jo_in]\nnumber = 31\nprefix = "/enter"\n',
            "[jo_in] name: its template in SES would be joinv1, as join's; choose another",
        ),
        ('start = ["enter"]\n' + JOIN, "start: ['enter'] is not a list of actions of this file"),
        ('start = [["join"]]\n' + JOIN, "start: [['join']] is not a list of actions of this file"),
    ],
)
def test_a_mistake_is_named_with_its_table_and_key(text: str | bytes, told: str) -> None:
    assert told in fault(text)


def test_all_mistakes_are_told_at_once() -> None:
    told = fault("[one]\nnumber = 0\n[two]\nlink = 3\n")
    assert ["[one]", "[one]", "[two]", "[two]", "[two]"] == [
        line.split()[0] for line in told.splitlines()[1:]
    ]


def test_a_folder_without_the_file_has_the_catalogues_actions_with_files(tmp_path: Path) -> None:
    with pytest.raises(ActionsError, match=r"has no actions\.toml, and no template"):
        load_actions(tmp_path)
    (tmp_path / "magic_link.txt").touch()
    (tmp_path / "activation.html").touch()
    assert ["activation", "magic_link"] == list(mailroom.load_actions(str(tmp_path)))
    (tmp_path / FILE_NAME).write_text(JOIN)
    assert ["join"] == list(load_actions(tmp_path))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ActionsError, match=r"cannot read .*actions\.toml': Is a directory"):
        load_actions(tmp_path)


def test_what_is_returned_may_be_changed() -> None:
    load_actions().clear()
    assert list(CATALOGUE) == list(load_actions())


@given(
    st.builds(
        Action,
        names,
        st.integers(30, 99),
        st.text(string.ascii_letters + string.punctuation, min_size=1, max_size=62).map(
            lambda p: b"/" + p.encode()
        ),
        account=st.sampled_from([None, "active", "provisioned"]),
        has_link=st.booleans(),
        needs_code=st.booleans(),
        lifetime_s=durations,
        fields=st.lists(
            names.filter(lambda n: n not in RESERVED and not n.endswith("_html")), unique=True
        ).map(tuple),
        lane=st.sampled_from(["urgent", "normal", "bulk"]),
        limit=st.none() | st.builds(Limit, st.integers(1, 999_999), durations),
        renews=st.booleans(),
    )
)
def test_what_is_written_is_read(action: Action) -> None:
    assert {action.name: action} == read(table(action))


def test_the_catalogue_can_be_written_and_read() -> None:
    actions, language, _ = load_catalogue()
    again = parse_catalogue(whole_file(language, actions.values()).encode(), "x")
    assert (actions, language) == (again.actions, again.language)


def test_an_action_clashes_with_itself_and_nothing_else_of_the_catalogue() -> None:
    for action in load_actions().values():
        for other in load_actions().values():
            assert bool(clashes(action, other)) == (action == other)


def test_the_variable_of_ones_own_action_is_known_and_a_misspelt_one_is_not() -> None:
    given_ = dict.fromkeys(
        ("MAILROOM_TEMPLATE_JOIN", "MAILROOM_TEMPLATE_ACTIVATOIN", "MAILROOM_TEMPLATE_MFA_ADDED"), "x"
    )
    assert [("MAILROOM_TEMPLATE_ACTIVATOIN", "MAILROOM_TEMPLATE_ACTIVATION")] == misspelt.unknown(given_)
