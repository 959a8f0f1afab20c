"""Pages out of Jinja2: whatever is put into one is escaped, and a name that is missing is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse


class Pages:
    """Renders the templates in a package's folder ``pages``, beside those that all pages share.

    Args:
        package: its name.
    """

    def __init__(self, package: str) -> None:
        self._environment = Environment(
            loader=ChoiceLoader([PackageLoader(package, "html"), PackageLoader("mailroom.web", "html")]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def answer(self, name: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
        """A page as an answer. Half a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
        text = self._environment.get_template(name).render(values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)
