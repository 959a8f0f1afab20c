"""The settings of ``mailroom run``: the collector's, the sender's, health's and the events'."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailroom.settings.collector import CollectorSettings, batch_timeout
from mailroom.settings.events import EventsSettings
from mailroom.settings.sender import SenderSettings
from mailroom.settings.variables import group, variable


def _address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    found = re.fullmatch(
        r"(?:(?P<host>[^:\[\]\s]+|\[[0-9a-fA-F:.]+\]):)?(?P<port>[0-9]{1,5})", text, re.ASCII
    )
    if not found or int(found["port"]) > 65535:
        raise ValueError(f"{text!r} is neither host:port nor a port; write 127.0.0.1:8027, or 0.0.0.0:8027")
    return (found["host"] or "127.0.0.1").strip("[]"), int(found["port"])


@dataclass(frozen=True)
class QueueingSettings(CollectorSettings):
    """The collector's settings in ``run``, which sends at once: while it cannot, what waits shares calls."""

    batch_timeout_ms: int = batch_timeout(0)


@dataclass(frozen=True)
class HealthSettings:
    """The host and port that serve health and metrics; None if they are not served."""

    address: tuple[str, int] | None = variable(
        "MAILROOM_HTTP",
        "",
        "the address that serves /metrics, /livez and /readyz: host:port, or a port on loopback;"
        " needs the extra http",
        _address,
    )


@dataclass(frozen=True)
class RunSettings:
    """The settings of ``mailroom run``."""

    collector: QueueingSettings = group(QueueingSettings)
    sender: SenderSettings = group(SenderSettings)
    health: HealthSettings = group(HealthSettings)
    events: EventsSettings = group(EventsSettings)
