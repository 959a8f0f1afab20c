"""Checks the templates of the folder, for the transports that do not take them from SES."""

from __future__ import annotations

from mailroom.doctor.report import Finding, fault, ok
from mailroom.settings.sender import TemplateSettings
from mailroom.templates import checks, sources


def local_templates(settings: TemplateSettings) -> Finding:
    """The templates are valid."""
    where = str(settings.folder or "Mailroom's own")
    loaded = sources.load(settings.folder, settings.constants)
    faults = [text for template in loaded.values() for text in checks.check(template)]
    if faults:
        return fault(f"{where}: {'; '.join(faults)}", "fix it, then run `mailroom templates check`")
    return ok(f"{where} can be used")
