"""Reads and writes SES's query protocol: a call is a form, its answer is XML.

Any bytes are read as parameters or end in a ``Refusal``. Any text in an answer becomes valid XML.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

NAMESPACE: Final = "http://ses.amazonaws.com/doc/2010-12-01/"
VERSION: Final = "2010-12-01"
FORM_TYPE: Final = "application/x-www-form-urlencoded"
MAX_PARAMETERS: Final = 10_000

# The characters that XML 1.0 cannot hold, not even escaped.
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Tree: TypeAlias = "str | Mapping[str, Tree] | Sequence[Tree]"


class Refusal(Exception):
    """A call is answered with an error, worded as SES words it.

    Attributes:
        code: such as ``TemplateDoesNotExist``, as in botocore's model.
        status: the HTTP status.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Entries(list[tuple[str, Tree]]):
    """A map, which the protocol writes as a list of entries."""


class Parameters:
    """The parameters of a call, by flattened names such as ``Destinations.member.1.Destination…``.

    Args:
        fields: the parameters.
        raw: the whole request.
    """

    def __init__(self, fields: Mapping[str, str], raw: bytes = b"") -> None:
        self.raw = raw
        self._fields = fields

    def get(self, name: str, otherwise: str = "") -> str:
        """Return an optional parameter."""
        return self._fields.get(name, otherwise)

    def required(self, name: str) -> str:
        """Return a required parameter.

        Raises:
            Refusal: it is missing or empty.
        """
        if value := self._fields.get(name):
            return value
        raise Refusal(
            "ValidationError",
            f"1 validation error detected: Value null at '{name}' failed to satisfy constraint:"
            " Member must not be null",
        )

    def members(self, name: str) -> list[str]:
        """Return a list of texts: those numbered from 1 without a gap."""
        found: list[str] = []
        while (value := self._fields.get(f"{name}.member.{len(found) + 1}")) is not None:
            found.append(value)
        return found


def read_form(content_type: str, body: bytes, head: bytes = b"") -> Parameters:
    """Return the parameters of a request; ``head``, the text before the body, becomes part of ``raw``.

    Raises:
        Refusal: the body is not a form.
    """
    if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
        raise Refusal("InvalidRequest", f"A call must be a form, with Content-Type: {FORM_TYPE}", 415)
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except ValueError as error:  # not ASCII, not UTF-8 within, or too many
        raise Refusal("MalformedQueryString", f"The form cannot be read: {error}") from None
    return Parameters(dict(pairs), head + body)


def write_answer(action: str, result: Tree) -> bytes:
    """Return the answer to a call."""
    inner = f"<{action}Result>{_xml(result)}</{action}Result>"
    metadata = f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata>"
    return f'<{action}Response xmlns="{NAMESPACE}">{inner}{metadata}</{action}Response>'.encode()


def write_error(refusal: Refusal) -> bytes:
    """Return the answer to a refused call."""
    error: Tree = {
        "Type": "Sender" if refusal.status < 500 else "Receiver",
        "Code": refusal.code,
        "Message": refusal.message,
    }
    inner = _xml({"Error": error, "RequestId": str(uuid.uuid4())})
    return f'<ErrorResponse xmlns="{NAMESPACE}">{inner}</ErrorResponse>'.encode()


def _xml(tree: Tree) -> str:
    if isinstance(tree, str):
        return escape(_UNWRITABLE.sub("\ufffd", tree), {"\r": "&#13;"})
    if isinstance(tree, Mapping):
        return "".join(f"<{name}>{_xml(value)}</{name}>" for name, value in tree.items())
    if isinstance(tree, Entries):
        return "".join(f"<entry>{_xml({'key': key, 'value': value})}</entry>" for key, value in tree)
    return "".join(f"<member>{_xml(value)}</member>" for value in tree)
