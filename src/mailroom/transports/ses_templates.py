"""Chooses the template in SES for a mail, and checks it before its first mail.

SES accepts a mail whose data lacks a field of its template, and sends nothing. An action's translations are
those of the folder. Mails in one that SES does not have are sent from the plain template.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parseaddr
from functools import partial
from typing import Final, NamedTuple

from mailroom.actions import Action
from mailroom.answers import Answer, Result, Scope
from mailroom.logs import EventLogger
from mailroom.settings.sender import SenderSettings
from mailroom.templates import checks, mails, remote
from mailroom.templates.sources import TemplateFolder
from mailroom.transports import ses_answers
from mailroom.transports.aws_client import DENIED, Client, asked, code_of, name_of

# A translation that SES did not have is looked for again after this time.
LOOK_AGAIN_S: Final = 60.0

log = EventLogger("ses")


class SesTemplate(NamedTuple):
    """A template in SES.

    Attributes:
        name: its name there.
        language: the language of its words.
        is_translation: whether there is a plain template to use instead.
    """

    name: str
    language: str
    is_translation: bool


class SesTemplates:
    """The templates in SES. Several threads may use it.

    Args:
        settings: their names, and the folder.
        learn: is called with the exception of a call that SES refused.

    Raises:
        ActionsError: the folder's actions cannot be used.
    """

    def __init__(self, settings: SenderSettings, learn: Callable[[Client, Exception], None]) -> None:
        self._settings = settings
        self._learn = learn
        self._folder = TemplateFolder(settings.templates.folder, settings.templates.constants)
        self._checked: set[str] = set()
        self._absent: dict[str, float] = {}  # the time to look again, by the name of a translation
        self._warned: set[tuple[str, ...]] = set()

    def choose(self, client: Client, action: Action, locale: str) -> SesTemplate | Answer:
        """Return the template for an action's mails in a language, or the answer to all of them."""
        name = self._settings.templates.name_of(action)
        if tag := self._folder.language_for(action, locale):
            translation = SesTemplate(mails.ses_name(name, tag), tag, is_translation=True)
            if not self._is_absent(translation.name):
                trouble = self._check(client, action, translation)
                if trouble or not self._is_absent(translation.name):
                    return trouble or translation
        plain = SesTemplate(name, self._folder.language, is_translation=False)
        return self._check(client, action, plain) or plain

    def note_absent(self, action: Action, template: SesTemplate) -> None:
        """Note that SES does not have a translation."""
        self._absent[template.name] = time.monotonic() + LOOK_AGAIN_S
        self._warn_once(
            "translation_missing",
            template=template.name,
            reason=f"the plain template is used; `mailroom templates push {action.name}`",
        )

    def _is_absent(self, name: str) -> bool:
        return time.monotonic() < self._absent.get(name, 0.0)

    def _check(self, client: Client, action: Action, template: SesTemplate) -> Answer | None:
        """Why a template cannot be used; None when no reason is known.

        A plain template that is missing, and one that the role may not read, is left to the call itself. A
        template that SES does not return for now is checked again before the next mail.
        """
        if (key := f"{action.name} {template.name}") in self._checked:
            return None
        name = template.name
        try:
            parts = asked(partial(remote.fetch, client, name))
        except Exception as error:  # noqa: BLE001 - its class decides what happens to the mail
            self._learn(client, error)
            self._warn_once("template_not_checked", template=name, reason=name_of(error))
            if code_of(error) in DENIED:
                self._checked.add(key)
            source = parseaddr(self._settings.source)[1]
            if ses_answers.of_exception(error, source, 0).result is Result.PAUSED:
                return None  # the call will get it too, or does not need the permission
            detail = f"the template {name!r} cannot be read: {name_of(error)}"
            return Answer(Result.TRANSIENT, detail, scope=Scope.ACCOUNT)
        if parts is None:
            if template.is_translation:
                self.note_absent(action, template)
            else:
                self._warn_once(
                    "template_missing", template=name, reason=f"`mailroom templates push {action.name}`"
                )
            return None
        findings = checks.check_fetched(parts, action)
        for finding in findings.warnings:
            self._warn_once("template_warning", template=name, reason=finding)
        if findings.faults:
            detail = (
                f"the template {name!r} in SES does not match {action.name}: {'; '.join(findings.faults)}"
                f" (`mailroom templates push {action.name}` replaces it)"
            )
            return Answer(Result.PAUSED, detail, scope=Scope.ACTION)
        self._checked.add(key)
        return None

    def _warn_once(self, event: str, **fields: str) -> None:
        warning = (event, *fields.values())
        if warning not in self._warned:
            self._warned.add(warning)
            log.warning(event, **fields)
