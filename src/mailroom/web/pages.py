"""Renders pages with Jinja2. Every value is escaped, and a missing one is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse


class Pages:
    """Renders the templates in a package's folder ``html``, and those that all pages share.

    Args:
        package: the package's name.
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
        """A page as an answer. A lone surrogate, which UTF-8 cannot encode, becomes a question mark."""
        text = self._environment.get_template(name).render(values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)
