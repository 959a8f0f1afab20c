"""What the checks ask SES, in both versions of its API. Every call only reads.

A role may have the rights of one version alone, so the checks use that of the transport.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from botocore import exceptions as aws

from mailroom.transports.aws_client import Client, Service, code_of

NOT_THERE: Final = (
    "ConfigurationSetDoesNotExist",
    "ConfigurationSetDoesNotExistException",
    "NotFoundException",
)
SANDBOX: Final = (200.0, 1.0)
# The types of events that Mailroom records, in the words of the first version.
IN_WORDS: Final = {"RENDERING_FAILURE": "renderingFailure"}

Ask = Callable[[str, Callable[[], Any]], Any]
"""Makes a call, which needs a permission; see ``SesProbe.ask``."""
Answer = Mapping[str, Any]


class SesApi(Protocol):
    """One version of the API.

    Attributes:
        service: its name at botocore.
        limits: the call that returns the account's limits.
    """

    service: Service
    limits: str

    def account(self, client: Client) -> Answer:
        """The account's limits, as its call returns them. Raises what botocore does."""

    def quota(self, account: Answer) -> Mapping[str, float]:
        """The limits in such an answer."""

    def sandbox(self, account: Answer) -> tuple[bool, str]:
        """Whether the account in such an answer is in the sandbox, and what the answer says about it."""

    def may_send(self, client: Client, ask: Ask) -> bool:
        """Whether the account's sending is enabled."""

    def identities(self, client: Client, ask: Ask, names: Sequence[str]) -> dict[str, str]:
        """The states of those identities that there are; ``Success`` is a verified one's."""

    def config_set(self, client: Client, ask: Ask, name: str) -> bool | None:
        """Whether a configuration set may send; None if there is none of this name."""

    def published(self, client: Client, ask: Ask, name: str) -> list[tuple[str, list[str]]]:
        """The enabled event destinations of a configuration set, each with its types of events."""


class FirstApi:
    """Version 1."""

    service: Service = "SES"
    limits = "ses:GetSendQuota"
    _describe = "ses:DescribeConfigurationSet"

    def account(self, client: Client) -> Answer:
        """See ``SesApi.account``."""
        answer: Answer = client.get_send_quota()
        return answer

    def quota(self, account: Answer) -> Mapping[str, float]:
        """See ``SesApi.quota``."""
        return account

    def sandbox(self, account: Answer) -> tuple[bool, str]:
        """See ``SesApi.sandbox``. This version does not say it, but the limits show it."""
        if (account["Max24HourSend"], account["MaxSendRate"]) == SANDBOX:
            return True, "the quota is that of the sandbox"
        return False, "the quota is not that of the sandbox"

    def may_send(self, client: Client, ask: Ask) -> bool:
        """See ``SesApi.may_send``."""
        answer = ask("ses:GetAccountSendingEnabled", client.get_account_sending_enabled)
        return bool(answer.get("Enabled", False))

    def identities(self, client: Client, ask: Ask, names: Sequence[str]) -> dict[str, str]:
        """See ``SesApi.identities``."""
        call = partial(client.get_identity_verification_attributes, Identities=list(names))
        found = ask("ses:GetIdentityVerificationAttributes", call)["VerificationAttributes"]
        return {name: found[name]["VerificationStatus"] for name in names if name in found}

    def config_set(self, client: Client, ask: Ask, name: str) -> bool | None:
        """See ``SesApi.config_set``."""
        call = partial(_if_there, self._describing(client, name, "reputationOptions"))
        answer = ask(self._describe, call)
        if answer is None:
            return None
        return bool(answer.get("ReputationOptions", {}).get("SendingEnabled", True))

    def published(self, client: Client, ask: Ask, name: str) -> list[tuple[str, list[str]]]:
        """See ``SesApi.published``."""
        answer = ask(self._describe, self._describing(client, name, "eventDestinations"))
        return _enabled(answer.get("EventDestinations", ()))

    def _describing(self, client: Client, name: str, part: str) -> Callable[[], Any]:
        return partial(
            client.describe_configuration_set,
            ConfigurationSetName=name,
            ConfigurationSetAttributeNames=[part],
        )


class SecondApi:
    """Version 2."""

    service: Service = "SESV2"
    limits = "ses:GetAccount"

    def account(self, client: Client) -> Answer:
        """See ``SesApi.account``."""
        answer: Answer = client.get_account()
        return answer

    def quota(self, account: Answer) -> Mapping[str, float]:
        """See ``SesApi.quota``."""
        found: Mapping[str, float] = account["SendQuota"]
        return found

    def sandbox(self, account: Answer) -> tuple[bool, str]:
        """See ``SesApi.sandbox``."""
        if account.get("ProductionAccessEnabled", True):
            return False, "the account has production access"
        return True, "the account is in the sandbox"

    def may_send(self, client: Client, ask: Ask) -> bool:
        """See ``SesApi.may_send``."""
        return bool(ask(self.limits, client.get_account).get("SendingEnabled", False))

    def identities(self, client: Client, ask: Ask, names: Sequence[str]) -> dict[str, str]:
        """See ``SesApi.identities``."""
        found = {}
        for name in names:
            call = partial(client.get_email_identity, EmailIdentity=name)
            answer = ask("ses:GetEmailIdentity", partial(_if_there, call))
            if answer is not None:
                state = str(answer.get("VerificationStatus", "PENDING"))
                found[name] = "Success" if answer.get("VerifiedForSendingStatus") else state
        return found

    def config_set(self, client: Client, ask: Ask, name: str) -> bool | None:
        """See ``SesApi.config_set``."""
        call = partial(client.get_configuration_set, ConfigurationSetName=name)
        answer = ask("ses:GetConfigurationSet", partial(_if_there, call))
        if answer is None:
            return None
        return bool(answer.get("SendingOptions", {}).get("SendingEnabled", True))

    def published(self, client: Client, ask: Ask, name: str) -> list[tuple[str, list[str]]]:
        """See ``SesApi.published``."""
        call = partial(client.get_configuration_set_event_destinations, ConfigurationSetName=name)
        answer = ask("ses:GetConfigurationSetEventDestinations", call)
        return [
            (name, [IN_WORDS.get(kind, kind.lower()) for kind in kinds])
            for name, kinds in _enabled(answer.get("EventDestinations", ()))
        ]


def _enabled(destinations: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    return [
        (str(one.get("Name")), list(one.get("MatchingEventTypes", ())))
        for one in destinations
        if one.get("Enabled")
    ]


def _if_there(call: Callable[[], Any]) -> Any:
    """The answer to a call; None if what it asks for does not exist."""
    try:
        return call()
    except aws.ClientError as error:
        if code_of(error) in NOT_THERE:
            return None
        raise
