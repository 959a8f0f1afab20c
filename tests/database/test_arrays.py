"""Arrays as PostgreSQL reads them."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailroom.database import arrays
from support.queue_sql import Db

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from('{}",\\ \n')
VALUES = st.lists(st.text(CHARACTERS) | st.sampled_from(["", "NULL", "null", "\\x", '"']), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(VALUES, st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.binary()))
def test_what_is_written_is_read(db: Db, words: list[str], ids: list[int], parts: list[bytes]) -> None:
    written = [arrays.texts(words), arrays.numbers(ids), arrays.octets(parts)]
    row = db.execute("SELECT %s::text[], %s::bigint[], %s::bytea[]", written, binary=True).fetchone()
    assert (words, ids, parts) == row
