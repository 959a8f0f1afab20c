"""Reads the data of a mail: one JSON object."""

from __future__ import annotations

import json
from typing import Any, Final

from mailroom.inbox.ses_protocol import Refusal

MAX_DATA_BYTES: Final = 262_144


def check_sizes(*texts: str) -> None:
    """Check that no data is larger than SES accepts.

    Raises:
        Refusal: it is.
    """
    for text in texts:
        if 4 * len(text) > MAX_DATA_BYTES < len(text.encode("utf-8", "surrogatepass")):
            raise Refusal(
                "ValidationError",
                "1 validation error detected: template data failed to satisfy constraint: Member must have"
                f" length less than or equal to {MAX_DATA_BYTES}",
            )


def read_data(text: str) -> dict[str, Any]:
    """Return the data as an object that can be written as JSON again; empty if the text is empty.

    Raises:
        Refusal: it is not a JSON object.
    """
    if not text:
        return {}
    try:
        data = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise Refusal("InvalidParameterValue", f"Template data is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refusal("InvalidParameterValue", "Template data is not a JSON object")
    return data


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) < float("inf") else _refuse(text)


# Python's own decoder accepts NaN and Infinity, which JSON does not have.
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
