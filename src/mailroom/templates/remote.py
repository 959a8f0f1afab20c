"""Fetches templates from SES, and pushes them to it."""

from __future__ import annotations

from typing import Any, Literal

from mailroom.templates.mails import SES_PARTS, for_ses
from mailroom.templates.sources import Template

Client = Any
"""A botocore client for ``ses``, whose methods are made at run time."""
Change = Literal["created", "updated", "unchanged"]


def fetch(client: Client, name: str) -> dict[str, str] | None:
    """Return the parts of a template by SES's names, or None if it does not exist.

    Raises:
        botocore.exceptions.BotoCoreError: SES did not answer.
        botocore.exceptions.ClientError: SES refused.
    """
    from botocore.exceptions import ClientError

    try:
        template = client.get_template(TemplateName=name)["Template"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("TemplateDoesNotExist", "TemplateDoesNotExistException"):
            return None
        raise
    return {part: template.get(part) or "" for part in SES_PARTS.values()}


def due_change(client: Client, template: Template, name: str) -> Change:
    """Return what ``push`` would do. Raises what ``fetch`` raises."""
    present = fetch(client, name)
    if present is None:
        return "created"
    wanted = for_ses(template, name)
    return "unchanged" if all(wanted[part] == text for part, text in present.items()) else "updated"


def push(client: Client, template: Template, name: str) -> Change:
    """Create or update a checked template in SES, and return what changed. Raises what ``fetch`` raises."""
    change = due_change(client, template, name)
    if change == "created":
        client.create_template(Template=for_ses(template, name))
    elif change == "updated":
        client.update_template(Template=for_ses(template, name))
    return change
