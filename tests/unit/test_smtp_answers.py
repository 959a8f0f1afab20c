"""The words in which mail servers refuse: of the sender or the account, of a recipient, for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailroom.answers import Result, Scope
from mailroom.settings.sender import SenderSettings
from mailroom.settings.transports import SmtpServer
from mailroom.settings.variables import read_settings
from mailroom.transports.refusals import about_recipient, about_sender
from mailroom.transports.smtp import SmtpTransport
from mailroom.transports.transport import open_transport
from support.messages import message
from support.senders import settings
from support.smtp import mail_server

SENDER = "noreply@acme.example"
ENVIRONMENT = {
    "MAILROOM_APP_NAME": "Acme",
    "MAILROOM_APP_URL": "https://app.example.com",
    "MAILROOM_SES_SOURCE": f"Acme <{SENDER}>",
    "MAILROOM_SEND_TIMEOUT": "5000",
}
RECIPIENT = message(1).email
SES_UNVERIFIED = (
    "554 Message rejected: Email address is not verified."
    " The following identities failed the check in region US-EAST-1: "
)

# What a server says of the sender or the account: nobody's mail would be accepted.
OURS = [
    # Postfix
    f"553 5.7.1 <{SENDER}>: Sender address rejected: not owned by user app",
    f"553 5.7.1 <{SENDER}>: Sender address rejected: not logged in",
    f"550 5.1.0 <{SENDER}>: Sender address rejected: User unknown in virtual mailbox table",
    f"450 4.1.8 <{SENDER}>: Sender address rejected: Domain not found",
    f"554 5.7.1 <{RECIPIENT}>: Relay access denied",
    f"454 4.7.1 <{RECIPIENT}>: Relay access denied",
    "554 5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied",
    "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]",
    "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
    "504 5.5.2 <app>: Helo command rejected: need fully-qualified hostname",
    "530 5.7.0 Must issue a STARTTLS command first",
    # Exim, cPanel
    "550 relay not permitted",
    "550 relay not permitted, authentication required",
    "550 Sender verify failed",
    "550 authentication required",
    "550 Domain acme.example has exceeded the max emails per hour (101/100 (101%)) allowed.",
    "550 Domain acme.example has exceeded the max defers and failures per hour (5/5 (100%)) allowed.",
    # Sendmail, qmail
    f"550 5.7.1 <{RECIPIENT}>... Relaying denied",
    "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)",
    # SES
    f"{SES_UNVERIFIED}{SENDER}",
    f"{SES_UNVERIFIED}acme.example, {SENDER}, {RECIPIENT}",
    "554 Message rejected: Sending paused for this account. For more information, please check the inbox",
    "454 Throttling failure: Daily message quota exceeded.",
    "554 Access denied: User `arn:aws:iam::1:user/u' is not authorized to perform `ses:SendRawEmail'",
    "554 Transaction failed: Configuration set <bulk> does not exist.",
    # Gmail, Google Workspace
    "550-5.4.5 Daily user sending limit exceeded. For more information visit support.google.com - gsmtp",
    "550-5.4.5 Daily SMTP relay sending limit exceeded for user.",
    "421 4.4.5 Daily SMTP relay sending limit exceeded for customer.",
    "550-5.7.1 Unauthenticated email is not accepted from this domain.",
    "550-5.7.26 This mail has been blocked because the sender is unauthenticated.",
    "550-5.7.1 Invalid credentials for relay [192.0.2.1]. The IP address you've registered",
    "550-5.7.1 The IP you're using to send mail is not authorized to send email directly to our servers.",
    "550 5.7.0 Mail relay denied [192.0.2.1]. Invalid credentials for relay for one of the domains",
    # Microsoft 365
    "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
    f"554 5.2.252 SendAsDenied; app@acme.example not allowed to send as {SENDER}",
    "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied",
    "550 5.2.2 Submission quota exceeded; STOREDRV",
    "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP.",
    "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients",
    "550 5.1.8 Access denied, bad outbound sender AS(42004)",
    "550 5.7.64 TenantAttribution; Relay Access Denied",
    "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
    "550 5.7.501 Service unavailable. Spam abuse detected from IP range.",
    "550 5.7.606 Access denied, banned sending IP [192.0.2.1]",
    "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains.",
    # SendGrid, Mailgun, Postmark, SparkPost, Brevo, Resend, Zoho, Yahoo, iCloud
    "550 The from address does not match a verified Sender Identity. Mail cannot be sent until resolved.",
    "550 Unauthenticated senders not allowed",
    "451 Maximum credits exceeded",
    "550 You are not authorized to send from that email address",
    "421 Domain sandbox1.mailgun.org is not allowed to send: Sandbox subdomains are for test purposes only.",
    "421 Free accounts are for test purposes only. Please upgrade or add the address",
    "550 5.7.1 Relaying denied",
    f"550 5.7.1 The 'From' address you supplied ({SENDER}) is not a Sender Signature on your account.",
    "550 While your account is pending approval, all recipient addresses must share the same domain",
    "550 5.7.1 Unconfigured Sending Domain <acme.example>",
    "525 5.7.1 Unauthorized IP address",
    "550 The acme.example domain is not verified",
    f"553 Relaying disallowed as {SENDER}",
    "554 5.1.8 Email Outgoing Blocked",
    "550 5.4.6 Unusual sending activity detected. Please try after sometime",
    "553 From address not verified - see http://help.example/",
    "550 5.7.0 From address is not one of your addresses.",
]

# What a server says of one recipient.
THEIRS = [
    "550 5.1.1 <x@y.example>: Recipient address rejected: User unknown in local recipient table",
    "550 5.4.1 Recipient address rejected: Access denied. AS(201806281)",
    "550-5.1.1 The email account that you tried to reach does not exist.",
    "550 5.2.1 The email account that you tried to reach is disabled.",
    "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
    "552 5.2.2 <x@y.example>: user is over quota",
    "550 Unrouteable address",
    "550 relay-not-permitted@y.example: unknown user",
    "554 5.7.1 Message contains spam or virus",
    "554 Transaction failed: Missing final '@domain'",
    "550 Too many hops",
    f"{SES_UNVERIFIED}{RECIPIENT}",
    f"{SES_UNVERIFIED}not.acme.example, x{SENDER}",
]

RETRIED = [
    ("450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents more",
     Result.TRANSIENT, Scope.RECIPIENT),
    ("452 4.2.2 The email account that you tried to reach is over quota",
     Result.TRANSIENT, Scope.RECIPIENT),
    ("450 4.7.1 <x@y.example>: Recipient address rejected: Greylisted", Result.TRANSIENT, Scope.RECIPIENT),
    ("454 Throttling failure: Maximum sending rate exceeded.", Result.THROTTLED, Scope.ACCOUNT),
    ("450 4.7.1 Error: too much mail from 192.0.2.1", Result.THROTTLED, Scope.ACCOUNT),
    ("421 4.7.28 Our system has detected an unusual rate of mail", Result.THROTTLED, Scope.ACCOUNT),
    ("550 5.7.1 Rate limit exceeded for this user", Result.THROTTLED, Scope.ACCOUNT),
    ("451 4.7.500 Server busy. Please try again later", Result.TRANSIENT, Scope.RECIPIENT),
]  # fmt: skip


def answer(step: str, reply: str) -> tuple[Result, Scope]:
    """The class of one mail's answer."""
    with mail_server() as server:
        server.answer(step, reply)
        chosen = read_settings(SenderSettings, ENVIRONMENT)
        transport = SmtpTransport(chosen, SmtpServer("127.0.0.1", server.port, "", "", False, False))
        (found,) = transport.send([message(1)])
        transport.close()
    return found.result, found.scope


@pytest.mark.parametrize("step", ["RCPT", "message"])
@pytest.mark.parametrize("reply", OURS)
def test_a_refusal_of_the_sender_or_the_account_pauses(step: str, reply: str) -> None:
    assert (Result.PAUSED, Scope.ACCOUNT) == answer(step, reply.replace("550-", "550 "))


@pytest.mark.parametrize("step", ["RCPT", "message"])
@pytest.mark.parametrize("reply", THEIRS)
def test_a_refusal_of_a_recipient_pauses_nothing(step: str, reply: str) -> None:
    assert (Result.REJECTED, Scope.RECIPIENT) == answer(step, reply.replace("550-", "550 "))


@pytest.mark.parametrize(("reply", "result", "scope"), RETRIED)
def test_a_limit_on_the_rate_is_the_accounts_and_a_mailbox_limit_is_not(
    reply: str, result: Result, scope: Scope
) -> None:
    assert (result, scope) == answer("RCPT", reply)


@pytest.mark.parametrize(
    "reply",
    [
        "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
        "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP.",
    ],
)
def test_a_refusal_of_the_client_in_the_banner_pauses(reply: str) -> None:
    assert (Result.PAUSED, Scope.ACCOUNT) == answer("banner", reply)


# The recipient chooses its address and runs its server.
CHOSEN = [
    (
        "evil@a.example",
        "450 4.1.1 unverified: host mx.a.example said: 550 5.7.1 Sending paused for this account",
    ),
    ("daily.limit@a.example", "550 5.1.1 User daily.limit unknown"),
    ("bob@Daily-Limit.example", "550 5.1.2 Host unknown: daily-limit.example not found"),
]


@pytest.mark.parametrize(("email", "reply"), CHOSEN)
def test_words_that_a_recipient_chose_pause_nobody(tmp_path: Path, email: str, reply: str) -> None:
    with mail_server() as server:
        server.answer("RCPT", reply, email.split("@")[0])
        transport = open_transport(settings(tmp_path, TRANSPORT=f"smtp://127.0.0.1:{server.port}"))
        refused, other = transport.send([message(1)._replace(email=email), message(2)])
        transport.close()
    assert (Scope.RECIPIENT, Result.SENT) == (refused.scope, other.result)


@pytest.mark.parametrize(
    "words",
    [
        "554 5.7.1 <recipient>: Recipient address rejected: Policy rejection; message quota exceeded",
        "554 5.7.1 <recipient>: Recipient address rejected: sending account disabled",
        "550 5.7.1 User app has exceeded its sending quota",
    ],
)
def test_words_about_the_account_are_not_known_to_be_about_the_recipient(words: str) -> None:
    assert not about_recipient(words)


@pytest.mark.parametrize(
    "words",
    [
        "550 5.7.1 RESOLVER.RST.AuthRequired; authentication required [Stage: CreateMessage]",
        "550 5.7.1 Message rejected: the subject 'Activate your account' looks like spam",
    ],
)
def test_words_about_one_recipients_filter_are_not_known_to_be_about_the_sender(words: str) -> None:
    assert not about_sender(words)
