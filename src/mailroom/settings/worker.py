"""What ``mailroom run`` runs on, besides what its two halves do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from mailroom.errors import SettingsError
from mailroom.settings.collector import CollectorSettings, collector_settings
from mailroom.settings.sender import SenderSettings, sender_settings
from mailroom.settings.variables import MAX_MS, Reader, Variable

Settings = TypeVar("Settings")

HTTP: Final = Variable(
    "MAILROOM_HTTP",
    "",
    "where /metrics, /livez and /readyz are served: host:port, or a port on loopback; needs the extra http",
)
READY_AGE: Final = Variable(
    "MAILROOM_READY_AGE",
    "120000",
    "/readyz is red when a mail that could be on its way has waited for so many milliseconds,"
    " or is not settled after as many",
    bounds=(1, MAX_MS),
)
READY_PAUSE: Final = Variable(
    "MAILROOM_READY_PAUSE",
    "60000",
    "/readyz is red when the provider has refused everybody for so many milliseconds",
    bounds=(1, MAX_MS),
)
HEALTH_VARIABLES: Final = (HTTP, READY_AGE, READY_PAUSE)


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Where health and metrics are served (None: nowhere), and what is healthy."""

    address: tuple[str, int] | None
    ready_age_ms: int
    ready_pause_ms: int


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What ``mailroom run`` runs on."""

    collector: CollectorSettings
    sender: SenderSettings
    health: HealthSettings


def run_settings(environment: Mapping[str, str]) -> RunSettings:
    """Read all of it.

    Raises:
        SettingsError: with every fault there is.
    """
    faults: list[str] = []

    def read(convert: Callable[[Mapping[str, str]], Settings]) -> Settings | None:
        try:
            return convert(environment)
        except SettingsError as error:
            faults.extend(error.faults)
            return None

    collector, sender, health = read(collector_settings), read(sender_settings), read(health_settings)
    if collector is None or sender is None or health is None:
        raise SettingsError(faults)
    return RunSettings(collector, sender, health)


def health_settings(environment: Mapping[str, str]) -> HealthSettings:
    """Read where health is served, and what is healthy.

    Raises:
        SettingsError: with every fault there is.
    """
    reader = Reader(environment)
    settings = HealthSettings(
        address=reader.read(HTTP, _address, None),
        ready_age_ms=reader.whole(READY_AGE),
        ready_pause_ms=reader.whole(READY_PAUSE),
    )
    reader.finish()
    return settings


def _address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    found = re.fullmatch(
        r"(?:(?P<host>[^:\[\]\s]+|\[[0-9a-fA-F:.]+\]):)?(?P<port>[0-9]{1,5})", text, re.ASCII
    )
    if not found or int(found["port"]) > 65535:
        raise ValueError(f"{text!r} is neither host:port nor a port; write 127.0.0.1:8027, or 0.0.0.0:8027")
    return (found["host"] or "127.0.0.1").strip("[]"), int(found["port"])
