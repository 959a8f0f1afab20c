"""SES's answers, translated: the table of DESIGN's sending policy, for calls and for recipients.

Codes and statuses are those of SES's API version 2010-12-01, and the errors common to all AWS APIs.
"""

from __future__ import annotations

import re
from email.utils import parseaddr
from typing import Final

from botocore import exceptions as aws

from mailroom.outcomes import Outcome, Result, Scope

REJECTED: Final = (Result.REJECTED, Scope.CALL)
THROTTLED: Final = (Result.THROTTLED, Scope.ACCOUNT)
PAUSED: Final = (Result.PAUSED, Scope.ACCOUNT)
NO_TEMPLATE: Final = (Result.PAUSED, Scope.ACTION)
AWAY: Final = (Result.TRANSIENT, Scope.ACCOUNT)
UNKNOWN: Final = (Result.UNKNOWN, Scope.ACCOUNT)

# What a recipient's entry in the answer to a bulk call means.
STATUSES: Final = {
    "Success": (Result.SENT, Scope.RECIPIENT),
    "MessageRejected": (Result.REJECTED, Scope.RECIPIENT),
    "InvalidParameterValue": (Result.REJECTED, Scope.RECIPIENT),
    "TransientFailure": (Result.TRANSIENT, Scope.RECIPIENT),
    "Failed": (Result.FAILED, Scope.RECIPIENT),
    "NoStatus": (Result.UNKNOWN, Scope.RECIPIENT),
    "AccountThrottled": THROTTLED,
    "TemplateDoesNotExist": NO_TEMPLATE,
    "MailFromDomainNotVerified": PAUSED,
    "ConfigurationSetDoesNotExist": PAUSED,
    "ConfigurationSetSendingPaused": PAUSED,
    "AccountSuspended": PAUSED,
    "AccountDailyQuotaExceeded": PAUSED,
    "AccountSendingPaused": PAUSED,
    "InvalidSendingPoolName": PAUSED,
}

# What an error of a whole call means; one that is not here is looked at by its HTTP status.
CODES: Final = {
    "MessageRejected": REJECTED,
    "InvalidParameterValue": REJECTED,
    "Throttling": THROTTLED,
    "ThrottlingException": THROTTLED,
    "TooManyRequestsException": THROTTLED,
    "RequestLimitExceeded": THROTTLED,
    "TemplateDoesNotExist": NO_TEMPLATE,
    "TemplateDoesNotExistException": NO_TEMPLATE,
    "InvalidTemplate": NO_TEMPLATE,
    "MailFromDomainNotVerifiedException": PAUSED,
    "ConfigurationSetDoesNotExist": PAUSED,
    "ConfigurationSetDoesNotExistException": PAUSED,
    "ConfigurationSetSendingPausedException": PAUSED,
    "AccountSendingPausedException": PAUSED,
    "AccountSuspendedException": PAUSED,
    "LimitExceeded": PAUSED,
    "AccessDenied": PAUSED,
    "AccessDeniedException": PAUSED,
    "AuthFailure": PAUSED,
    "ExpiredToken": PAUSED,
    "ExpiredTokenException": PAUSED,
    "IncompleteSignature": PAUSED,
    "InvalidClientTokenId": PAUSED,
    "MissingAuthenticationToken": PAUSED,
    "NotAuthorized": PAUSED,
    "OptInRequired": PAUSED,
    "RequestExpired": PAUSED,
    "SignatureDoesNotMatch": PAUSED,
    "UnrecognizedClientException": PAUSED,
}

# botocore's exceptions that are raised before a request leaves this machine whole.
NOT_ASKED: Final = {
    aws.EndpointConnectionError: AWAY,
    aws.ConnectTimeoutError: AWAY,
    aws.ProxyConnectionError: AWAY,
    aws.SSLError: PAUSED,
    aws.NoCredentialsError: PAUSED,
    aws.PartialCredentialsError: PAUSED,
    aws.CredentialRetrievalError: PAUSED,
    aws.MetadataRetrievalError: PAUSED,
    aws.SSOError: PAUSED,
    aws.ConfigNotFound: PAUSED,
    aws.ProfileNotFound: PAUSED,
    aws.ParamValidationError: REJECTED,
}

MOST_DETAIL: Final = 300


def of_status(status: str, error: str, message_id: str) -> Outcome:
    """What a recipient's entry says; a status that is new to us fails, and so is tried a few times.

    An entry without a status, as some stand-ins for SES give it, counts by whether the mail has an id.
    """
    if not status:
        status = "Success" if message_id else "NoStatus"
    result, scope = STATUSES.get(status, (Result.FAILED, Scope.RECIPIENT))
    detail = "" if result is Result.SENT else _line(f"{status}: {error}" if error else status)
    return Outcome(result, detail, message_id, scope)


def of_exception(error: Exception, source: str) -> Outcome:
    """What an exception of botocore's says of every recipient of the call.

    Args:
        error: the exception.
        source: the sender's address: a rejection that names it is no recipient's fault.
    """
    if isinstance(error, aws.ClientError):
        return _of_error(error, source)
    for kind, (result, scope) in NOT_ASKED.items():
        if isinstance(error, kind):
            return Outcome(result, _line(f"{type(error).__name__}: {error}"), scope=scope)
    # The connection broke, the answer stayed out or made no sense: SES may have accepted.
    return Outcome(UNKNOWN[0], _line(f"{type(error).__name__}: {error}"), scope=UNKNOWN[1])


def _of_error(error: aws.ClientError, source: str) -> Outcome:
    code = error.response.get("Error", {}).get("Code", "")
    words = error.response.get("Error", {}).get("Message", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500:
        result, scope = UNKNOWN
    elif status == 429:
        result, scope = THROTTLED
    else:
        # An error that is new to us fails, and the call is cut to see whose it is.
        result, scope = CODES.get(code, (Result.FAILED, Scope.CALL))
    if result is Result.REJECTED and _names_sender(words, source):
        result, scope = PAUSED
    return Outcome(result, _line(f"{code}: {words}"), scope=scope)


def _names_sender(words: str, source: str) -> bool:
    """Whether a rejection is about the sender's identity: then it would be everybody's."""
    address = parseaddr(source)[1].lower()
    words = words.lower()
    if "paused" in words or "suspended" in words:
        return True
    domain = address.rpartition("@")[2]
    named = re.findall(r"[^\s,;<>\"']+", words.partition("not verified")[2])
    return address in named or domain in named


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST_DETAIL else text[: MOST_DETAIL - 1] + "…"
