"""SES's query protocol: a form comes in, XML goes out.

Pure: it knows how calls and answers are written and no call by name. Whatever bytes a form is made
of, reading it ends in parameters or in a ``Refusal``; whatever text an answer holds, it is XML.
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

# What XML 1.0 cannot hold, however it is written.
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Tree: TypeAlias = "str | Mapping[str, Tree] | Sequence[Tree]"


class Refusal(Exception):
    """A call that is answered with an error, in SES's words.

    Attributes:
        code: such as ``TemplateDoesNotExist``, as botocore's model has it.
        status: of the HTTP answer.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Entries(list[tuple[str, Tree]]):
    """A map, which the protocol writes as a list of keys and values."""


class Parameters:
    """A call's parameters by their flattened names: ``Destinations.member.1.Destination…``.

    Args:
        fields: them.
        raw: the request that they were read from.
    """

    def __init__(self, fields: Mapping[str, str], raw: bytes = b"") -> None:
        self.raw = raw
        self._fields = fields

    def get(self, name: str, otherwise: str = "") -> str:
        """A parameter that may be missing."""
        return self._fields.get(name, otherwise)

    def required(self, name: str) -> str:
        """A parameter that must be there.

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
        """A list of texts, up to the first number that is missing."""
        found: list[str] = []
        while (value := self._fields.get(f"{name}.member.{len(found) + 1}")) is not None:
            found.append(value)
        return found


def read_form(content_type: str, body: bytes, head: bytes = b"") -> Parameters:
    """A request's parameters; ``head`` is what came before its body, and only kept.

    Raises:
        Refusal: it is no form of text.
    """
    if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
        raise Refusal("InvalidRequest", f"a call is a form: Content-Type: {FORM_TYPE}", 415)
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except ValueError as error:  # not ASCII, not UTF-8 within, or too many
        raise Refusal("MalformedQueryString", f"the form cannot be read: {error}") from None
    return Parameters(dict(pairs), head + body)


def write_answer(action: str, result: Tree | None) -> bytes:
    """The answer to a call; None where the call has no result."""
    inner = "" if result is None else f"<{action}Result>{_xml(result)}</{action}Result>"
    metadata = f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata>"
    return f'<{action}Response xmlns="{NAMESPACE}">{inner}{metadata}</{action}Response>'.encode()


def write_error(refusal: Refusal) -> bytes:
    """The answer to a call that is refused."""
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
