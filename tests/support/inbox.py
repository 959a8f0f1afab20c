"""A client of botocore's for an inbox: one attempt a call, and nothing of the machine's settings."""

from __future__ import annotations

from functools import cache
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.session import Session


@cache
def _session() -> Session:
    return botocore.session.Session()  # kept, for it reads SES's model from the disk


def ses_client(url: str, *, read_timeout_s: float = 30) -> Any:
    return _session().create_client(
        "ses",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout_s, proxies={}),
    )
