"""Checks SES: the credentials, the account's limits, the sender's address, and the templates.

Every call only reads. A missing permission to read is a warning, since sending needs other permissions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parseaddr, parsedate_to_datetime
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from botocore import exceptions as aws

from mailroom.actions import Action
from mailroom.addresses import wire_address
from mailroom.doctor.clocks import compared
from mailroom.doctor.files import local_templates
from mailroom.doctor.report import Check, Finding, NotKnown, Status, fault, ok, skipped, warning
from mailroom.doctor.ses_probe import AWS_HOST, SesProbe
from mailroom.errors import TemplateError
from mailroom.settings.sender import DEFAULT_SOURCE
from mailroom.templates import checks, mails, remote, sources
from mailroom.transports.aws_client import DENIED, ERRORS, code_of
from mailroom.transports.aws_credentials import resolve
from mailroom.transports.ses_answers import CODES, THROTTLED

NEARLY_USED: Final = 0.8
TEMPLATES_S: Final = 5.0


def credentials(probe: SesProbe) -> Finding:
    """There are AWS credentials."""
    try:
        method, _ = resolve(probe.session)
    except aws.NoCredentialsError as error:
        raise probe.explained(error) from error
    except Exception as error:
        probe.unreadable = True
        raise probe.explained(error) from error
    return ok(f"found ({method})")


def region(probe: SesProbe) -> Finding:
    """A region is set."""
    if probe.unreadable:
        return skipped("needs credentials")
    host = urlsplit(probe.client.meta.endpoint_url).hostname or ""
    whose = "" if AWS_HOST.fullmatch(host) else ", which is not an AWS host"
    return ok(f"{probe.client.meta.region_name} at {host}{whose}")


def answers(probe: SesProbe) -> Finding:
    """SES answers and accepts the credentials."""
    asked_at = time.time()
    try:
        answer = probe.account = probe.api.account(probe.client)
        code = ""
    except aws.ClientError as error:
        answer, code = error.response, code_of(error)
        if code not in DENIED and CODES.get(code) != THROTTLED:
            raise probe.explained(error) from error
    except ERRORS as error:
        raise probe.explained(error) from error
    finally:
        answered_at = time.time()
    probe.answered = (asked_at, answered_at, _date(answer))
    return ok(f"answered within {(answered_at - asked_at) * 1000:.0f} ms")


def clock(probe: SesProbe) -> Finding:
    """This machine's clock agrees with AWS, which refuses signatures that are minutes old."""
    if probe.answered is None:
        return skipped("needs an answer from SES")
    asked_at, answered_at, date = probe.answered
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return skipped("the answer from SES has no valid date")
    return compared("SES", theirs, asked_at, answered_at, resolution_s=1.0)


def quota(probe: SesProbe) -> Finding:
    """The account may send more mail, at the rate that is set."""
    if probe.account is None:
        call = probe.api.limits
        raise NotKnown(
            f"not known: {call} is not permitted, or was throttled",
            f"permit {call}, or set MAILROOM_SEND_RATE; without either the rate is 14 a second",
        )
    limits = probe.api.quota(probe.account)
    most, sent, rate = limits["Max24HourSend"], limits["SentLast24Hours"], limits["MaxSendRate"]
    limit = f"{most:.0f}" if most >= 0 else "any number"
    detail = f"{sent:.0f} sent in 24 hours, of {limit}; {rate:.10g} a second"
    more = "ask AWS for a higher sending quota (Service Quotas, Amazon SES)"
    if 0 <= most <= sent:
        return fault(f"used up: {detail}", f"{more}, or wait: mails older than 24 hours no longer count")
    if most > 0 and sent > NEARLY_USED * most:
        return warning(f"nearly used up: {detail}", more)
    wanted = probe.settings.send_rate
    if wanted and 0 < rate < wanted:
        return warning(
            f"{detail}, and MAILROOM_SEND_RATE is {wanted:.10g}: SES will throttle",
            f"set MAILROOM_SEND_RATE to auto, or {more}",
        )
    return ok(detail)


def sandbox(probe: SesProbe) -> Finding:
    """The account is not in the sandbox, where only verified recipients get mail."""
    if probe.account is None:
        return skipped("needs the quota")
    is_in, words = probe.api.sandbox(probe.account)
    if is_in:
        return warning(
            f"{words}, where only verified recipients get mail",
            "request production access in the SES console (Account dashboard)",
        )
    return ok(f"no: {words}")


def sending(probe: SesProbe) -> Finding:
    """The account's sending is not paused."""
    if not probe.api.may_send(probe.client, probe.ask):
        return fault(
            "sending is paused for this account and region",
            "find the reason in the SES console, then `aws ses update-account-sending-enabled --enabled`",
        )
    return ok("enabled")


def sender(probe: SesProbe) -> Finding:
    """The sender's address is verified, or its domain, or a parent of the domain."""
    local, domain = wire_address(parseaddr(probe.settings.source)[1])
    labels = domain.lower().split(".")
    above = [".".join(labels[at:]) for at in range(1, len(labels) - 1)]
    address = f"{local}@{domain}"
    names = [address, domain.lower(), *above]
    states = probe.api.identities(probe.client, probe.ask, names)
    verified = [name for name, state in states.items() if state == "Success"]
    is_default = probe.settings.source == DEFAULT_SOURCE
    if not verified:
        begun = "".join(f"; {name}: {state}" for name, state in states.items())
        return fault(
            f"neither {address} nor its domain is verified in this region{begun}",
            "set MAILROOM_SES_SOURCE to a verified address, or verify the domain in the SES console",
        )
    if is_default:
        return warning(f"{address} is the default", "set MAILROOM_SES_SOURCE to an address of yours")
    return ok(f"{verified[0]} is verified")


def config_set(probe: SesProbe) -> Finding:
    """The configuration set exists, and its sending is not paused."""
    name = probe.settings.config_set
    if not name:
        return ok("none is set")
    may_send = probe.api.config_set(probe.client, probe.ask, name)
    if may_send is None:
        return fault(
            f"there is no configuration set {name!r} in this region",
            "create it in SES, or set MAILROOM_SES_CONFIG_SET to an existing one, or to none",
        )
    if not may_send:
        return fault(
            f"sending is paused for the configuration set {name!r}",
            "find the reason in the SES console, then enable its sending again",
        )
    return ok(name)


def templates(mailed: Callable[[], Sequence[Action]], probe: SesProbe) -> Finding:
    """Each template in SES uses the data of its mails, and is the same as the local one."""
    settings = probe.settings.templates
    folder = sources.TemplateFolder(settings.folder, settings.constants)
    every = [(action, tag) for action in mailed() for tag in ["", *folder.languages(action)]]
    deadline = time.monotonic() + TEMPLATES_S  # SES returns about one a second
    found = []
    for action, tag in every:
        if time.monotonic() < deadline:
            found.append(_template(folder, action, tag, probe))
    if left := len(every) - len(found):
        remedy = "`mailroom templates diff` compares them all"
        found.append(warning(f"{left} more were not checked, since SES returns one a second", remedy))
    for state in (Status.FAULT, Status.WARNING):
        if wrong := [one for one in found if one.state is state]:
            details = dict.fromkeys(one.detail for one in wrong)
            remedies = dict.fromkeys(one.remedy for one in wrong)
            return Finding(state, "; ".join(details), "; ".join(remedies))
    return ok(", ".join(one.detail for one in found) or "no action is mailed")


def _template(folder: sources.TemplateFolder, action: Action, tag: str, probe: SesProbe) -> Finding:
    name = mails.ses_name(probe.settings.templates.name_of(action), tag)
    parts = probe.ask("ses:GetTemplate", partial(remote.fetch, probe.client, name))
    another = f"or set MAILROOM_TEMPLATE_{action.name.upper()} to another template"
    if parts is None and tag:
        return warning(
            f"there is no template {name!r}, so mails in {tag} are sent in {folder.language}",
            "run `mailroom templates push`",
        )
    if parts is None:
        return fault(
            f"there is no template {name!r} in this region", f"run `mailroom templates push`, {another}"
        )
    found = checks.check_fetched(parts, action)
    if found.faults:
        return fault(
            f"{name}: {'; '.join(found.faults)}",
            f"`mailroom templates diff` shows the difference, `mailroom templates push` fixes it; {another}",
        )
    if found.warnings:
        return warning(
            f"{name}: {'; '.join(found.warnings)}",
            "change it, or push one that `mailroom templates check` accepts",
        )
    ours = _ours(folder, action, tag)
    if ours and any(mails.for_ses(ours, name)[part] != text for part, text in parts.items()):
        where = probe.settings.templates.folder or "Mailroom's own"
        return warning(
            f"{name} differs from the local files ({where})",
            "see `mailroom templates diff`; push the files, or set MAILROOM_TEMPLATES to the right folder",
        )
    return ok(f"{name}{' (the same as the local files)' if ours else ''}")


CHECKS: Final[tuple[Check[SesProbe], ...]] = (
    Check("credentials", credentials),
    Check("region", region),
    Check("ses", answers, ("credentials", "region")),
    Check("ses-clock", clock, ("credentials", "region")),
    Check("quota", quota, ("ses",)),
    Check("sandbox", sandbox, ("ses",)),
    Check("sending-enabled", sending, ("ses",)),
    Check("sender", sender, ("ses", "MAILROOM_SES_SOURCE")),
    Check("configuration-set", config_set, ("ses",)),
)


def template_check(probe: SesProbe, mailed: Callable[[], Sequence[Action]]) -> Check[SesProbe]:
    """The check of the templates: of the folder's where calls carry them, else of SES's."""
    if probe.api.service == "SESV2":
        return Check("templates", _of_folder, ("MAILROOM_TEMPLATES",))
    return Check("templates", partial(templates, mailed), ("ses", "MAILROOM_TEMPLATES"))


def _of_folder(probe: SesProbe) -> Finding:
    return local_templates(probe.settings.templates)


def _date(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))


def _ours(folder: sources.TemplateFolder, action: Action, tag: str) -> sources.Template | None:
    """The local template, or None if it is not valid."""
    try:
        ours = folder.template(action, tag)
    except TemplateError:
        return None
    return None if checks.check(ours) else ours
