"""A mail's data: one JSON object, from anybody.

What is read here can be rendered, compared and written as JSON again.
"""

from __future__ import annotations

import json
from typing import Any, Final

from mailroom.inbox.ses_protocol import Refusal

DEEPEST: Final = 100
LARGEST_BYTES: Final = 262_144


def check_sizes(*texts: str) -> None:
    """See that no data is larger than SES takes it.

    Raises:
        Refusal: it is.
    """
    for text in texts:
        if 4 * len(text) > LARGEST_BYTES < len(text.encode("utf-8", "surrogatepass")):
            raise Refusal(
                "ValidationError",
                "1 validation error detected: template data failed to satisfy constraint: Member must have"
                f" length less than or equal to {LARGEST_BYTES}",
            )


def read_data(text: str) -> dict[str, Any]:
    """The data; an empty text is none.

    Raises:
        Refusal: it is no JSON object, or holds what JSON has no words for.
    """
    if not text:
        return {}
    try:
        data = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise Refusal("InvalidParameterValue", f"Template data is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refusal("InvalidParameterValue", "Template data is not a JSON object")
    if text.count("{") + text.count("[") > DEEPEST and _is_deeper(data, DEEPEST):
        raise Refusal("InvalidParameterValue", f"Template data is nested more than {DEEPEST} deep")
    return data


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) < float("inf") else _refuse(text)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def _is_deeper(value: Any, levels: int) -> bool:
    if levels < 0:
        return True
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_deeper(child, levels - 1) for child in children)
