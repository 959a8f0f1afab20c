"""botocore's client for SES, and its exceptions as ours, for whoever asks SES something."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import botocore.session
from botocore import exceptions as aws
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.session import Session

from mailroom.errors import TransportError
from mailroom.transports.ses_answers import CODES, THROTTLED
from mailroom.transports.transport import CONNECT_TIMEOUT_S

Answer = TypeVar("Answer")
Client = Any
"""A client of botocore's for ``ses``, whose methods are made when it is."""

# Whatever botocore raises for a call. The last is none of its BotoCoreErrors, and quotes the answer.
ERRORS: Final = (aws.ClientError, aws.BotoCoreError, ResponseParserError)
DENIED: Final = ("AccessDenied", "AccessDeniedException", "NotAuthorized")
# "You can execute this operation no more than once per second", says SES of GetTemplate and others.
PAUSE_S: Final = 1.1

# Of addresses of the web and of mail: who, and with which password.
_USER_INFO: Final = re.compile(r"\S+@")


def open_client(
    *,
    send_timeout_ms: int,
    connections: int,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    session: Session | None = None,
) -> Client:
    """A client whose calls are one attempt each; nothing is asked of AWS yet.

    Raises:
        TransportError: botocore's settings are incomplete.
    """
    session = session or botocore.session.get_session()
    # It would tell every failed refresh, with a traceback and in the middle of ours.
    logging.getLogger("botocore").setLevel(logging.CRITICAL)
    # The name that containers and functions of AWS's are given; botocore reads only the older one.
    region = session.get_config_variable("region") or os.environ.get("AWS_REGION")
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=connect_timeout_s,
        read_timeout=send_timeout_ms / 1000,
        max_pool_connections=connections,
        tcp_keepalive=True,
        user_agent_extra="mailroom",
    )
    try:
        return session.create_client("ses", region_name=region, config=config)
    except (aws.BotoCoreError, ValueError) as error:
        raise explain(error) from error


def asked(call: Callable[[], Answer]) -> Answer:
    """What SES answers to a question, at the second try if the first one was throttled.

    Raises:
        Exception: one of ``ERRORS``.
    """
    try:
        return call()
    except aws.ClientError as error:
        if CODES.get(code_of(error)) != THROTTLED:
            raise
    time.sleep(PAUSE_S)
    return call()


def explain(error: Exception) -> TransportError:
    """The error to end with, for an exception of botocore's where no mail is at stake."""
    text = " ".join(str(error).split())
    match error:
        case aws.NoRegionError():
            hint = "set AWS_DEFAULT_REGION, or a region in the profile"
        case aws.NoCredentialsError() | aws.PartialCredentialsError():
            hint = (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
            )
        case aws.EndpointConnectionError() | aws.ConnectTimeoutError() | aws.ReadTimeoutError():
            hint = "see whether this machine reaches SES, and whether AWS_ENDPOINT_URL_SES is right"
        case aws.ClientError():
            hint = "see whether the account, the region and the role's policy are the right ones"
        case ResponseParserError():
            text = "what answers is something else: its answer cannot be read"
            hint = "see whether AWS_ENDPOINT_URL_SES is right, and what a proxy (HTTPS_PROXY) makes of it"
        case _:
            hint = "see AWS's settings of this machine: variables, profile, role"
    return TransportError(_USER_INFO.sub("…@", f"SES: {text}"), hint=hint)


def code_of(error: Exception) -> str:
    """The code of a refusal; empty for anything else."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, aws.ClientError) else ""


def name_of(error: Exception) -> str:
    """The code of a refusal, or the exception's name: what can be logged of it without a look."""
    return code_of(error) or type(error).__name__
