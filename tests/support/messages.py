"""Messages to send: one by its number, or any that the line can hold."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from mailroom.actions import Action, load_actions
from mailroom.tokens import sign
from mailroom.wire import Message, decode
from support.processes import KEY

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)
CATALOGUE: Final = load_actions()
ACTIVATION: Final = CATALOGUE["activation"]
PASSWORD_RECOVERY: Final = CATALOGUE["password_recovery"]


def message(number: int = 0, action: Action = ACTIVATION) -> Message:
    code = f"{number % 100_000:05}"
    token = sign(number.to_bytes(32, "big"), action, keys=KEY, code=code)
    return Message(action, f"person{number}@example.com", f"person{number}", token, code)


def mixed(count: int, first: int = 0) -> list[Message]:
    """Activations, and every third a recovery."""
    return [
        message(number, PASSWORD_RECOVERY if number % 3 == 0 else ACTIVATION)
        for number in range(first, first + count)
    ]


def messages() -> st.SearchStrategy[Message]:
    """Any message that the encoder accepts."""
    return st.builds(
        lambda one, email, login: one._replace(email=email, username=login),
        st.builds(message, st.integers(0, 2**64), st.sampled_from([ACTIVATION, PASSWORD_RECOVERY])),
        TEXT,
        TEXT,
    )


def decoded(line: bytes) -> list[Message]:
    """A line with actions of the catalogue."""
    return decode(line, CATALOGUE)
