"""Loads botocore's data files without what no call needs: documentation, and the endpoints of other services.

The file of all endpoints alone takes ten times the memory of what is kept. A service that is left out gets
the endpoint of its partition's pattern.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Final

from botocore.loaders import JSONFileLoader
from botocore.session import Session

# By the names in their addresses: SES, SQS, and those that credentials come from.
SERVICES: Final = {"email", "sqs", "sts", "portal.sso", "oidc", "signin"}


class _Files(JSONFileLoader):
    def load_file(self, file_path: str) -> dict[str, Any] | None:
        for ending, read in ((".json", Path.read_bytes), (".json.gz", _unzipped)):
            if (path := Path(file_path + ending)).is_file():
                found: dict[str, Any] = json.loads(read(path), object_pairs_hook=_kept)
                return found
        return None


def lighten(session: Session) -> None:
    """Make a session load its data without what is left out."""
    session.get_component("data_loader").file_loader = _Files()


def _unzipped(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def _kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without what is left out; a text named so is a text, a member of a structure is an object."""
    return {
        name: _of_services(value) if name == "services" else value
        for name, value in pairs
        if not (name == "documentation" and isinstance(value, str))
    }


def _of_services(value: Any) -> Any:
    return {name: value[name] for name in SERVICES & value.keys()} if isinstance(value, dict) else value
