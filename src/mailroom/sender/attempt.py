"""The result of one call, and how to find the recipient that it was refused for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from mailroom.answers import Answer, Scope

Item = TypeVar("Item")


class Attempt(NamedTuple):
    """The result of one call.

    Attributes:
        answers: one for each message, in their order.
        tripped: whether it tripped a breaker, which then decides when to try again. False for a recipient
            whose own refusal did, so that others are tried before it.
    """

    answers: list[Answer]
    tripped: bool

    def halves(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """The items at fault in two halves, if the call was refused because of one recipient among several.

        Args:
            items: one for each message. Sending the halves separately narrows down which recipient it is.

        Returns:
            Two halves; nothing when the call was refused for one message alone, or for none.
        """
        blamed = [item for item, one in zip(items, self.answers, strict=True) if one.scope is Scope.CALL]
        half = len(blamed) // 2
        return [blamed[:half], blamed[half:]] if half else []
