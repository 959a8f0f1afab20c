"""Holds an SES account (templates, identities, a configuration set, limits), and checks calls against it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.utils import parseaddr
from functools import lru_cache
from typing import Final

from mailroom.inbox.calls import BulkCall
from mailroom.inbox.limits import Limits
from mailroom.inbox.mails import NO_TEMPLATE, StoredTemplate
from mailroom.inbox.ses_protocol import Refusal
from mailroom.templates.tags import Kind, syntax_fault, tags

MAX_DESTINATIONS: Final = 50
MAX_TEMPLATES: Final = 10_000
# "The maximum size of a template is 500 KB."
MAX_TEMPLATE: Final = 500_000
MAX_ADDRESS: Final = 320
TOO_LONG: Final = f"Address length is more than {MAX_ADDRESS} characters long"
REGION: Final = "US-EAST-1"
# The account's only configuration set, which is the default of MAILROOM_SES_CONFIG_SET.
CONFIG_SET: Final = "default"

_NAME: Final = re.compile("[A-Za-z0-9_-]{1,64}")


@lru_cache(maxsize=64)
def inline_template(parts: tuple[str, str, str]) -> StoredTemplate:
    """Return what SES makes of content that comes with a call.

    Raises:
        Refusal: it has more than ``{{field}}``.
    """
    if not any(part.strip() for part in parts[1:]):
        raise Refusal("InvalidTemplate", "The content has neither a text nor an HTML part")
    if sum(map(len, parts)) > MAX_TEMPLATE:
        raise Refusal("InvalidTemplate", "The content is too large")
    for tag in (tag for part in parts for tag in tags(part)):
        if tag.kind is not Kind.FIELD or "~" in tag.source:
            raise Refusal("InvalidTemplate", "Template contains unsupported operations.")
    return StoredTemplate.of("", parts)


class InboxAccount:
    """The account.

    Args:
        limits: the rate and the quota.
        identities: the verified addresses and domains; None means that all are verified.
    """

    def __init__(self, limits: Limits, identities: Iterable[str] | None) -> None:
        self.limits = limits
        self.paused = False
        self.templates: dict[str, StoredTemplate] = {}
        self.identities = None if identities is None else set(identities)

    def check(self, call: BulkCall) -> StoredTemplate:
        """Return the template of a call that may be made, and charge its recipients to the rate.

        A mail over SMTP has no template, and may have any number of recipients.

        Raises:
            Refusal: the call may not be made.
        """
        if self.paused:
            raise Refusal("AccountSendingPausedException", "Email sending is disabled for this account.")
        if not call.message and not 1 <= len(call.destinations) <= MAX_DESTINATIONS:
            raise Refusal(
                "InvalidParameterValue",
                f"{len(call.destinations)} destinations: a call has 1 to {MAX_DESTINATIONS}.",
            )
        if call.content:
            template = inline_template(call.content)
        else:
            template = NO_TEMPLATE if call.message else self.template(call.template)
        if call.config_set:
            self.check_config_set(call.config_set)
        if len(call.source) > MAX_ADDRESS and not call.message:
            raise Refusal("InvalidParameterValue", TOO_LONG)
        address = parseaddr(call.source)[1]
        if "@" not in address:
            raise Refusal("InvalidParameterValue", "Missing final '@domain'")
        if not self._may_send_as(address):
            raise Refusal(
                "MessageRejected",
                "Email address is not verified. The following identities failed the check in region"
                f" {REGION}: {call.source}",
            )
        if not self.limits.take(call.recipients):
            raise Refusal("Throttling", "Maximum sending rate exceeded.")
        return template

    def put_template(self, name: str, parts: tuple[str, str, str], *, new: bool) -> None:
        """Create a template, or update one.

        Args:
            name: its name.
            parts: its subject, text and HTML.
            new: whether to create it; otherwise it must exist.

        Raises:
            Refusal: it exists already, does not exist, or is not a valid template.
        """
        if not new:
            self.template(name)
        elif name in self.templates:
            raise Refusal("AlreadyExists", f"Template {name} already exists")
        elif not _NAME.fullmatch(name):
            raise Refusal("InvalidParameterValue", f"A name is 1 to 64 letters, digits, - and _: {name}")
        if len(self.templates) > MAX_TEMPLATES or sum(map(len, parts)) > MAX_TEMPLATE:
            raise Refusal("LimitExceeded", "Too many templates, or one that is too large")
        if fault := next(filter(None, map(syntax_fault, parts)), ""):
            raise Refusal("InvalidTemplate", f"Template {name}: {fault}")
        self.templates[name] = StoredTemplate.of(name, parts)

    def template(self, name: str) -> StoredTemplate:
        """Return the template of a name.

        Raises:
            Refusal: it does not exist.
        """
        if found := self.templates.get(name):
            return found
        raise Refusal("TemplateDoesNotExist", f"Template {name} does not exist")

    def check_config_set(self, name: str) -> None:
        """Check that a configuration set exists.

        Raises:
            Refusal: it does not.
        """
        if name != CONFIG_SET:
            raise Refusal("ConfigurationSetDoesNotExist", f"Configuration set <{name}> does not exist.")

    def is_verified(self, identity: str) -> bool:
        """Whether this address or domain itself is verified."""
        return self.identities is None or identity in self.identities

    def _may_send_as(self, address: str) -> bool:
        """Whether the address, its domain or a parent domain is verified."""
        labels = address.rpartition("@")[2].lower().split(".")
        return any(map(self.is_verified, [address, *(".".join(labels[at:]) for at in range(len(labels)))]))
