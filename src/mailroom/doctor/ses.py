"""SES: whether it lets us in, and lets us send these mails from this address.

Every call only reads. What the role may not read is a warning, since sending takes other permissions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parseaddr, parsedate_to_datetime
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from botocore import exceptions as aws

from mailroom.actions import ACTIONS, Action
from mailroom.doctor.account import Account
from mailroom.doctor.clocks import compared
from mailroom.doctor.report import Check, Finding, NotKnown, fault, ok, skipped, warning
from mailroom.errors import TemplateError
from mailroom.settings.sender import DEFAULT_SOURCE, SenderSettings
from mailroom.templates import checks, mails, remote, sources
from mailroom.transports.addresses import ascii_domain
from mailroom.transports.ses_answers import CODES, THROTTLED
from mailroom.transports.ses_client import DENIED, ERRORS, code_of

NO_CONFIG_SET: Final = ("ConfigurationSetDoesNotExist", "ConfigurationSetDoesNotExistException")
SANDBOX: Final = (200.0, 1.0)
NEARLY_USED: Final = 0.8

_AWS_HOST: Final = re.compile(r".+\.(amazonaws\.com(\.cn)?|api\.aws)")


def credentials(account: Account) -> Finding:
    """AWS's credentials, by the way they were found."""
    try:
        found = account.session.get_credentials()
    except aws.BotoCoreError as error:
        account.unreadable = True
        raise account.explained(error) from error
    if found is None:
        raise account.explained(aws.NoCredentialsError())
    return ok(f"found ({found.method})")


def region(account: Account) -> Finding:
    """The region, and where it is asked for."""
    if account.unreadable:
        return skipped("needs credentials")
    host = urlsplit(account.client.meta.endpoint_url).hostname or ""
    whose = "" if _AWS_HOST.fullmatch(host) else ", which is not AWS's own"
    return ok(f"{account.client.meta.region_name} at {host}{whose}")


def answers(account: Account) -> Finding:
    """SES answers, and takes the credentials."""
    asked_at = time.time()
    try:
        answer = account.quota = account.client.get_send_quota()
        code = ""
    except aws.ClientError as error:
        answer, code = error.response, code_of(error)
        if code not in DENIED and CODES.get(code) != THROTTLED:
            raise account.explained(error) from error
    except ERRORS as error:
        raise account.explained(error) from error
    finally:
        answered_at = time.time()
    account.answered = (asked_at, answered_at, _date(answer))
    return ok(f"within {(answered_at - asked_at) * 1000:.0f} ms")


def clock(account: Account) -> Finding:
    """AWS refuses what was signed by a clock that is wrong."""
    if account.answered is None:
        return skipped("needs an answer of SES's")
    asked_at, answered_at, date = account.answered
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return skipped("SES's answer has no time to compare with")
    return compared("SES", theirs, asked_at, answered_at, resolution_s=1.0)


def quota(account: Account) -> Finding:
    """What the account may send, and has sent."""
    if account.quota is None:
        raise NotKnown(
            "not known: ses:GetSendQuota is not permitted, or was throttled",
            "permit ses:GetSendQuota, or set MAILROOM_SEND_RATE; else the sender keeps to 14 a second",
        )
    most, sent = account.quota["Max24HourSend"], account.quota["SentLast24Hours"]
    rate = account.quota["MaxSendRate"]
    limit = f"{most:.0f}" if most >= 0 else "any number"
    detail = f"{sent:.0f} sent in 24 hours, of {limit}; {rate:.10g} a second"
    more = "ask AWS for a higher sending quota (Service Quotas, Amazon SES)"
    if 0 <= most <= sent:
        return fault(f"used up: {detail}", f"{more}; mails that are older than 24 hours count no more")
    if most > 0 and sent > NEARLY_USED * most:
        return warning(f"nearly used up: {detail}", more)
    wanted = account.settings.send_rate
    if wanted and 0 < rate < wanted:
        return warning(
            f"{detail}, and MAILROOM_SEND_RATE is {wanted:.10g}: SES will throttle",
            f"set MAILROOM_SEND_RATE to auto, or {more}",
        )
    return ok(detail)


def sandbox(account: Account) -> Finding:
    """In the sandbox only verified recipients get mail. SES does not say so here; its limits do."""
    if account.quota is None:
        return skipped("needs the quota")
    if (account.quota["Max24HourSend"], account.quota["MaxSendRate"]) == SANDBOX:
        return warning(
            "the quota is the sandbox's: only recipients whose addresses are verified get mail",
            "request production access in the console of SES (Account dashboard)",
        )
    return ok("no: the quota is not the sandbox's")


def sending(account: Account) -> Finding:
    """The account is not paused."""
    answer = account.ask("ses:GetAccountSendingEnabled", account.client.get_account_sending_enabled)
    if not answer.get("Enabled", False):
        return fault(
            "sending is paused for this account and region",
            "see why in the console of SES, then `aws ses update-account-sending-enabled --enabled`",
        )
    return ok("enabled")


def sender(account: Account) -> Finding:
    """The sender's address is verified, or its domain or one above."""
    try:
        local, domain = ascii_domain(parseaddr(account.settings.source)[1])
    except ValueError as error:
        return fault(f"of the sender, {error}", "set MAILROOM_SES_SOURCE to an address that is one")
    labels = domain.lower().split(".")
    above = [".".join(labels[at:]) for at in range(1, len(labels) - 1)]
    address = f"{local}@{domain}"
    names = [address, domain.lower(), *above]
    ask = partial(account.client.get_identity_verification_attributes, Identities=names)
    told = account.ask("ses:GetIdentityVerificationAttributes", ask)["VerificationAttributes"]
    states = {name: told[name]["VerificationStatus"] for name in names if name in told}
    verified = [name for name, state in states.items() if state == "Success"]
    is_default = account.settings.source == DEFAULT_SOURCE
    if not verified:
        begun = "".join(f"; {name}: {state}" for name, state in states.items())
        return fault(
            f"{address} is not verified in this region, nor is its domain{begun}",
            "set MAILROOM_SES_SOURCE to an address that is, or verify its domain in the console of SES",
        )
    if is_default:
        return warning(f"{address} is the default", "set MAILROOM_SES_SOURCE to an address of yours")
    return ok(f"{verified[0]} is verified")


def config_set(account: Account) -> Finding:
    """The configuration set exists and is not paused."""
    name = account.settings.config_set
    if not name:
        return ok("none is named")
    names = ["reputationOptions"]

    def ask() -> Any:
        try:
            return account.client.describe_configuration_set(
                ConfigurationSetName=name, ConfigurationSetAttributeNames=names
            )
        except aws.ClientError as error:
            if code_of(error) in NO_CONFIG_SET:
                return None
            raise

    answer = account.ask("ses:DescribeConfigurationSet", ask)
    if answer is None:
        return fault(
            f"there is no configuration set {name!r} in this region",
            "make it in SES, or set MAILROOM_SES_CONFIG_SET to another's name, or to none",
        )
    if not answer.get("ReputationOptions", {}).get("SendingEnabled", True):
        return fault(
            f"sending is paused for the configuration set {name!r}",
            "see why in the console of SES, then let it send again",
        )
    return ok(name)


def template(action: Action, account: Account) -> Finding:
    """The template in SES shows what its mails have, and is that of the files."""
    name = account.settings.templates.names[action.name]
    parts = account.ask("ses:GetTemplate", partial(remote.fetch, account.client, name))
    another = f"MAILROOM_TEMPLATE_{action.name.upper()} names another"
    if parts is None:
        return fault(
            f"there is no template {name!r} in this region", f"`mailroom templates push` makes it; {another}"
        )
    found = checks.check_fetched(parts, action)
    if found.faults:
        return fault(
            f"{name}: {'; '.join(found.faults)}",
            f"`mailroom templates diff` shows the difference, `mailroom templates push` mends it; {another}",
        )
    if found.warnings:
        return warning(f"{name}: {'; '.join(found.warnings)}", "change it, or push one that is checked")
    ours = _ours(account.settings, action)
    if ours and any(mails.for_ses(ours, name)[part] != text for part, text in parts.items()):
        where = account.settings.templates.folder or "Mailroom's own"
        return warning(
            f"{name} differs from the files ({where})",
            "`mailroom templates diff` shows how; `push` it, or set MAILROOM_TEMPLATES to its files",
        )
    return ok(f"{name}{', the same as the files' if ours else ''}")


CHECKS: Final[tuple[Check[Account], ...]] = (
    Check("credentials", credentials),
    Check("region", region),
    Check("ses", answers, ("credentials", "region")),
    Check("ses-clock", clock, ("credentials", "region")),
    Check("quota", quota, ("ses",)),
    Check("sandbox", sandbox, ("ses",)),
    Check("sending-enabled", sending, ("ses",)),
    Check("sender", sender, ("ses", "MAILROOM_SES_SOURCE")),
    Check("configuration-set", config_set, ("ses",)),
    *(
        Check(f"template-{action.name}", partial(template, action), ("ses", "MAILROOM_TEMPLATES"))
        for action in ACTIONS
    ),
)


def _date(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))


def _ours(settings: SenderSettings, action: Action) -> sources.Template | None:
    """The files' template, if it can be compared with: one that may be used."""
    try:
        ours = sources.load(settings.templates.folder, settings.templates.constants)[action.name]
    except TemplateError:
        return None
    return None if checks.check(ours) else ours
