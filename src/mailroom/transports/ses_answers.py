"""Translates SES's replies into answers, for whole calls and for single recipients.

Codes and statuses are those of both versions of SES's API, 2010-12-01 and 2019-09-27, and the errors common
to all AWS APIs.
"""

from __future__ import annotations

import re
from typing import Final

from botocore import exceptions as aws

from mailroom.answers import Answer, Result, Scope
from mailroom.transports.refusals import is_unverified
from mailroom.transports.transport import DAILY_QUOTA

REJECTED: Final = (Result.REJECTED, Scope.CALL)
THROTTLED: Final = (Result.THROTTLED, Scope.ACCOUNT)
PAUSED: Final = (Result.PAUSED, Scope.ACCOUNT)
NO_TEMPLATE: Final = (Result.PAUSED, Scope.ACTION)
AWAY: Final = (Result.TRANSIENT, Scope.ACCOUNT)
UNKNOWN: Final = (Result.UNKNOWN, Scope.ACCOUNT)

# What a recipient's entry in the answer to a bulk call means; the second version writes them in capitals.
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
    "SUCCESS": (Result.SENT, Scope.RECIPIENT),
    "MESSAGE_REJECTED": (Result.REJECTED, Scope.RECIPIENT),
    "INVALID_PARAMETER": (Result.REJECTED, Scope.RECIPIENT),
    "TRANSIENT_FAILURE": (Result.TRANSIENT, Scope.RECIPIENT),
    "FAILED": (Result.FAILED, Scope.RECIPIENT),
    "ACCOUNT_THROTTLED": THROTTLED,
    "TEMPLATE_NOT_FOUND": NO_TEMPLATE,
    "MAIL_FROM_DOMAIN_NOT_VERIFIED": PAUSED,
    "CONFIGURATION_SET_NOT_FOUND": PAUSED,
    "CONFIGURATION_SET_SENDING_PAUSED": PAUSED,
    "ACCOUNT_SUSPENDED": PAUSED,
    "ACCOUNT_DAILY_QUOTA_EXCEEDED": PAUSED,
    "ACCOUNT_SENDING_PAUSED": PAUSED,
    "INVALID_SENDING_POOL_NAME": PAUSED,
}

# What an error of a whole call means; an unknown error is classified by its HTTP status.
CODES: Final = {
    "MessageRejected": REJECTED,
    "InvalidParameterValue": REJECTED,
    "BadRequestException": REJECTED,
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
    "SendingPausedException": PAUSED,
    "NotFoundException": PAUSED,
    "LimitExceeded": PAUSED,
    "LimitExceededException": PAUSED,
    "AccessDenied": PAUSED,
    "AccessDeniedException": PAUSED,
    "AuthFailure": PAUSED,
    "InvalidAction": PAUSED,
    "InvalidParameterCombination": PAUSED,
    "InvalidQueryParameter": PAUSED,
    "MalformedQueryString": PAUSED,
    "MissingAction": PAUSED,
    "MissingParameter": PAUSED,
    "ExpiredToken": PAUSED,
    "ExpiredTokenException": PAUSED,
    "IncompleteSignature": PAUSED,
    "InvalidClientTokenId": PAUSED,
    "InvalidSignatureException": PAUSED,
    "MissingAuthenticationToken": PAUSED,
    "MissingAuthenticationTokenException": PAUSED,
    "NotAuthorized": PAUSED,
    "OptInRequired": PAUSED,
    "RequestExpired": PAUSED,
    "SignatureDoesNotMatch": PAUSED,
    "UnrecognizedClientException": PAUSED,
}

# SES, of content in a call that has more than {{field}}: "Template contains unsupported operations."
UNSUPPORTED: Final = "unsupported operations"
DENIED: Final = ("AccessDenied", "AccessDeniedException")

# Exceptions that botocore raises before a request has left this machine completely.
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

# The HTTP statuses by which unknown errors are classified: access refused, and took too long.
CLOSED_STATUSES: Final = (401, 403, 404, 405, 407)
LATE_STATUSES: Final = (408, 425)


def of_status(status: str, error: str, message_id: str) -> Answer:
    """The answer in a recipient's entry; an unknown status is FAILED, and so is retried a few times.

    Some emulators of SES omit the status. Such an entry means success if the mail has an id.
    """
    if not status:
        status = "Success" if message_id else "NoStatus"
    result, scope = STATUSES.get(status, (Result.FAILED, Scope.RECIPIENT))
    detail = "" if result is Result.SENT else f"{status}: {error}" if error else status
    return Answer(result, detail, message_id, scope)


def of_exception(error: Exception, source: str, status: int) -> Answer:
    """The answer for every recipient of a call in which botocore raised an exception.

    Args:
        error: the exception.
        source: the sender's address; a rejection that names it is not a recipient's fault.
        status: the HTTP status; 0 when there was no reply.
    """
    if isinstance(error, aws.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        words = error.response.get("Error", {}).get("Message", "")
    else:
        code, words = type(error).__name__, str(error)
    result, scope = _class_of(error, code, words, status)
    if result is Result.REJECTED and _names_sender(words, source):
        result, scope = PAUSED
    if UNSUPPORTED in words.lower():
        result, scope = NO_TEMPLATE
    if result is Result.THROTTLED and DAILY_QUOTA in words.lower():
        result, scope = PAUSED
    if code in DENIED and ":template/" in words:
        result, scope = NO_TEMPLATE  # IAM names the resource, and other actions' templates may be allowed
    answered = f" (HTTP status {status})" if status and code not in CODES else ""
    return Answer(result, f"{code}: {words}{answered}", scope=scope)


def _class_of(error: Exception, code: str, words: str, status: int) -> tuple[Result, Scope]:
    for kind, known in NOT_ASKED.items():
        if isinstance(error, kind):
            return known
    if status >= 500 or status in LATE_STATUSES:
        return UNKNOWN
    if code in CODES:
        return CODES[code]
    if status == 429:
        return THROTTLED
    if status in CLOSED_STATUSES:
        return PAUSED
    if isinstance(error, aws.ClientError) and code and words:
        # The call is halved to find the recipient.
        return Result.FAILED, Scope.CALL
    # The connection broke, or the reply is missing or not readable: SES may have accepted.
    return UNKNOWN


def _names_sender(words: str, source: str) -> bool:
    """Whether a rejection is about the sender's identity, so that every mail would get it."""
    # Not within an address, which may be a recipient's.
    if re.search("paused|suspended", re.sub(r"\S+@\S+", "", words), re.IGNORECASE):
        return True
    return is_unverified(words, source)
