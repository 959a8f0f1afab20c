"""The settings of the sender, its transports and its templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mailroom.actions import Action
from mailroom.errors import SettingsError
from mailroom.settings.addresses import sender_address, web_address
from mailroom.settings.transports import SES_TRANSPORTS, TransportAddress, transports
from mailroom.settings.variables import boolean, by_action, group, is_printable, variable, whole

MAX_RATE: Final = 1_000_000.0
DEFAULT_SOURCE: Final = "noreply@localhost"
BUILT_IN: Final = "built-in"


def _rates(text: str) -> tuple[float | None, ...]:
    parts = text.split(",")
    if len(parts) > 2:
        raise ValueError(
            f"{text!r} has {len(parts)} rates; write one for all transports, or one for each of two"
        )
    return tuple(_rate(part.strip()) for part in parts)


def _rate(text: str) -> float | None:
    if text == "auto":
        return None
    number = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) else 0.0
    if not 0 < number <= MAX_RATE:
        raise ValueError(
            f"{text!r} is neither auto nor a number of recipients a second, above 0 and up to {MAX_RATE:,.0f}"
        )
    return number


def _reply_to(text: str) -> str:
    return text and sender_address(text)


def _config_set(text: str) -> str:
    return "" if text == "none" else _name(text)


def _output_folder(text: str) -> Path:
    folder = Path(text)
    for path in (folder, *folder.parents):
        try:
            is_taken = path.exists() and not path.is_dir()
        except OSError as error:
            raise ValueError(
                f"{error.strerror}: {str(path)!r}; name a folder that this user may open"
            ) from None
        if is_taken:
            raise ValueError(f"{str(path)!r} is not a folder; name a folder, which need not exist yet")
    return folder


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise ValueError(
            f"{text!r} is not a name in SES: write 1 to 64 characters, from A-Z, a-z, 0-9, - and _"
        )
    return text


def _template_name(text: str) -> str:
    return text and _name(text)


def _constant(text: str) -> str:
    # Handlebars cannot escape a brace in text, and a subject has one line.
    if set(text) & set("{}\\") or not is_printable(text):
        raise ValueError(
            f"{text!r} cannot be put into a template; write one line without {{ }} \\ and control characters"
        )
    return text


def _folder(text: str) -> Path | None:
    if text == BUILT_IN:
        return None
    folder = Path(text)
    if not folder.is_dir():
        raise ValueError(f"{text!r} is not a folder; `mailroom init` writes one to start from")
    return folder


@dataclass(frozen=True)
class OutputSettings:
    """The folder for what could not be sent."""

    output_path: Path = variable(
        "MAILROOM_SES_OUTPUT_PATH",
        "./output",
        "the folder for rejected.csv and for the answers of SES that report an error",
        _output_folder,
    )


@dataclass(frozen=True)
class FolderSettings:
    """The folder of actions and templates; None for the built-in one."""

    folder: Path | None = variable(
        "MAILROOM_TEMPLATES",
        BUILT_IN,
        "a folder with your own actions and templates (see `mailroom templates`)",
        _folder,
    )


@dataclass(frozen=True)
class TemplateSettings(FolderSettings):
    """The templates: their folder, the texts that they show in every mail, and their names in SES.

    Attributes:
        names: by the names of actions; only those that are set.
    """

    app_name: str = variable("MAILROOM_APP_NAME", "", "what templates show for {{app_name}}", _constant)
    app_url: str = variable(
        "MAILROOM_APP_URL", "", "what templates show for {{app_url}}, the beginning of links", web_address
    )
    names: Mapping[str, str] = by_action(
        "MAILROOM_TEMPLATE_",
        "",
        "the name in SES of an action's template; by default the action's name without _, and v1",
        _template_name,
    )

    def name_of(self, action: Action) -> str:
        """The name in SES of an action's template."""
        return self.names.get(action.name) or action.template

    @property
    def constants(self) -> Mapping[str, str]:
        """The values of ``{{app_name}}`` and ``{{app_url}}``, without those that are not set."""
        values = {"app_name": self.app_name, "app_url": self.app_url}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class SenderSettings(OutputSettings):
    """The settings of ``mailroom sender``. Durations are in milliseconds, as in the environment.

    Attributes:
        addresses: one transport, or two.
        config_set: SES's configuration set; empty for none.
        send_rates: recipients a second, for all transports or for each of two; None to ask the provider.
    """

    addresses: tuple[TransportAddress, ...] = variable(
        "MAILROOM_TRANSPORT",
        "ses",
        "the transport: ses, sesv2 (version 2 of its API), debug, smtp://user:password@host:587 (STARTTLS if"
        " offered) or smtps://… (TLS); or two of them with a comma between: the second sends while the first"
        " cannot",
        transports,
        secret=True,
    )
    failover_after_ms: int = whole(
        "MAILROOM_FAILOVER_AFTER",
        30_000,
        "of two transports the second sends once the first has refused every mail for this many milliseconds",
        least=1,
    )
    debug: bool = variable(
        "MAILROOM_DEBUG",
        "false",
        "true prints the calls, with live tokens, instead of making them, as MAILROOM_TRANSPORT=debug does",
        boolean,
    )
    config_set: str = variable(
        "MAILROOM_SES_CONFIG_SET",
        "default",
        "SES's configuration set; none sends without one",
        _config_set,
    )
    source: str = variable(
        "MAILROOM_SES_SOURCE",
        DEFAULT_SOURCE,
        "the sender's address for every transport: name@domain or Name <name@domain>",
        sender_address,
    )
    reply_to: str = variable(
        "MAILROOM_REPLY_TO",
        "",
        "the address that answers go to, for every transport; by default the sender's",
        _reply_to,
    )
    templates: TemplateSettings = group(TemplateSettings)
    send_rates: tuple[float | None, ...] = variable(
        "MAILROOM_SEND_RATE",
        "auto",
        f"the maximum recipients a second, up to {MAX_RATE:,.0f}; auto uses SES's quota, or 14 without one;"
        " two transports may have two rates, with a comma between them",
        _rates,
    )
    send_concurrency: int = whole(
        "MAILROOM_SEND_CONCURRENCY", 4, "the maximum number of calls at a time", least=1, most=100
    )
    send_timeout_ms: int = whole(
        "MAILROOM_SEND_TIMEOUT",
        10_000,
        "an answer counts as lost after this many milliseconds of silence, or four times as many in total",
        least=1,
    )
    shutdown_timeout_ms: int = whole(
        "MAILROOM_SHUTDOWN_TIMEOUT",
        10_000,
        "after SIGTERM, mails in hand are still sent for this many milliseconds",
        least=0,
    )

    @property
    def each(self) -> tuple[SenderSettings, ...]:
        """The settings of each transport, without the others; the first comes first."""
        if self.debug:
            return (self,)
        return tuple(
            replace(self.at(place), addresses=(address,)) for place, address in enumerate(self.addresses)
        )

    def check_rates(self) -> None:
        """Check that there are no more rates than transports.

        Raises:
            SettingsError: there are.
        """
        if not self.debug and len(self.send_rates) > len(self.addresses):
            raise SettingsError(["MAILROOM_SEND_RATE: two rates and one transport; write one rate"])

    def at(self, place: int) -> SenderSettings:
        """These settings with the rate of the first transport (0) or of the second (1)."""
        return replace(self, send_rates=(self.send_rates[min(place, len(self.send_rates) - 1)],))

    @property
    def send_rate(self) -> float | None:
        """The rate of the transport to send with; of two the first's."""
        return self.send_rates[0]

    @property
    def over_ses(self) -> SenderSettings | None:
        """The settings of the transport that calls SES; None without one."""
        return next((each for each in self.each if each.transport in SES_TRANSPORTS), None)

    @property
    def transport(self) -> TransportAddress:
        """The transport to send with; the first of two."""
        return "debug" if self.debug else self.addresses[0]
