"""An account of SES's: its templates, identities, configuration sets and limits, and what they forbid."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parseaddr
from typing import Final

from mailroom.inbox.calls import Request
from mailroom.inbox.limits import Limits
from mailroom.inbox.mails import NO_TEMPLATE, StoredTemplate
from mailroom.inbox.ses_protocol import Refusal
from mailroom.templates.tags import syntax_fault

DESTINATIONS_PER_CALL: Final = 50
MAX_THINGS: Final = 10_000
# "The maximum size of a template is 500 KB."
LARGEST_TEMPLATE: Final = 500_000
MAX_ADDRESS: Final = 320
TOO_LONG: Final = f"Address length is more than {MAX_ADDRESS} characters long"
REGION: Final = "US-EAST-1"

_NAME: Final = re.compile("[A-Za-z0-9_-]{1,64}")


class Account:
    """The account.

    Args:
        limits: what may be sent.
        identities: the addresses and domains that are verified; None for all there are.
        config_sets: those that exist at first.
    """

    def __init__(self, limits: Limits, identities: Iterable[str] | None, config_sets: Iterable[str]) -> None:
        self.limits = limits
        self.paused = False
        self.templates: dict[str, StoredTemplate] = {}
        self.config_sets = dict.fromkeys(config_sets, True)
        self.identities = dict.fromkeys(identities or (), True)
        self.verify_all = identities is None

    def check(self, request: Request) -> StoredTemplate:
        """See that a call may be made, and charge the rate for it; gives back its template.

        A mail that came whole has none, and may have as many addresses as it came with.

        Raises:
            Refusal: it may not.
        """
        if self.paused:
            raise Refusal("AccountSendingPausedException", "Email sending is disabled for this account.")
        if not request.message and not 1 <= len(request.destinations) <= DESTINATIONS_PER_CALL:
            raise Refusal(
                "InvalidParameterValue",
                f"{len(request.destinations)} destinations: a call has 1 to {DESTINATIONS_PER_CALL}.",
            )
        template = NO_TEMPLATE if request.message else self.template(request.template)
        if request.config_set:
            self.check_config_set(request.config_set)
        if len(request.source) > MAX_ADDRESS and not request.message:
            raise Refusal("InvalidParameterValue", TOO_LONG)
        address = parseaddr(request.source)[1]
        if "@" not in address:
            raise Refusal("InvalidParameterValue", "Missing final '@domain'")
        if not self._may_send_as(address):
            raise Refusal(
                "MessageRejected",
                "Email address is not verified. The following identities failed the check in region"
                f" {REGION}: {request.source}",
            )
        if not self.limits.take(request.recipients):
            raise Refusal("Throttling", "Maximum sending rate exceeded.")
        return template

    def put_template(self, name: str, parts: tuple[str, str, str], *, new: bool) -> None:
        """Make a template, or change one.

        Args:
            name: its name.
            parts: subject, text and HTML.
            new: whether it is to be one that does not exist yet, or one that does.

        Raises:
            Refusal: it is not, or cannot be a template.
        """
        if not new:
            created = self.template(name).created
        elif name in self.templates:
            raise Refusal("AlreadyExists", f"Template {name} already exists")
        else:
            _check_name(name, "InvalidParameterValue")
            created = datetime.now(UTC)
        if len(self.templates) > MAX_THINGS or sum(map(len, parts)) > LARGEST_TEMPLATE:
            raise Refusal("LimitExceeded", "Too many templates, or one that is too large")
        if fault := next(filter(None, map(syntax_fault, parts)), ""):
            raise Refusal("InvalidTemplate", f"Template {name}: {fault}")
        self.templates[name] = StoredTemplate.of(name, parts, created)

    def template(self, name: str) -> StoredTemplate:
        """The template of a name.

        Raises:
            Refusal: there is none.
        """
        if found := self.templates.get(name):
            return found
        raise Refusal("TemplateDoesNotExist", f"Template {name} does not exist")

    def check_config_set(self, name: str) -> None:
        """See that there is such a configuration set.

        Raises:
            Refusal: there is none.
        """
        if name not in self.config_sets:
            raise Refusal("ConfigurationSetDoesNotExist", f"Configuration set <{name}> does not exist.")

    def add_config_set(self, name: str) -> None:
        """Make a configuration set.

        Raises:
            Refusal: it exists, or cannot.
        """
        if name in self.config_sets:
            raise Refusal("ConfigurationSetAlreadyExists", f"Configuration set <{name}> already exists.")
        _check_name(name, "InvalidConfigurationSet")
        if len(self.config_sets) >= MAX_THINGS:
            raise Refusal("LimitExceeded", "Too many configuration sets")
        self.config_sets[name] = True

    def verify(self, identity: str) -> None:
        """Take an address or a domain for verified.

        Raises:
            Refusal: there are too many.
        """
        if len(self.identities) >= MAX_THINGS:
            raise Refusal("LimitExceeded", "Too many identities")
        self.identities[identity] = True

    def is_verified(self, identity: str) -> bool:
        """Whether this very address or domain is verified."""
        return self.verify_all or identity in self.identities

    def _may_send_as(self, address: str) -> bool:
        """Whether the address is verified, its domain or one above."""
        labels = address.rpartition("@")[2].lower().split(".")
        domains = (".".join(labels[at:]) for at in range(len(labels)))
        return self.is_verified(address) or any(domain in self.identities for domain in domains)


def _check_name(name: str, code: str) -> None:
    if not _NAME.fullmatch(name):
        raise Refusal(code, f"A name is 1 to 64 letters, digits, - and _: {name}")
