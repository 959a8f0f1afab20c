"""Templates: three files an action in a folder, in Handlebars as SES speaks it.

``activation.subject.txt``, ``activation.txt`` and ``activation.html`` are the parts of one mail. They
show the fields of their action (``{{login}}``, ``{{secret}}``, ``{{code}}``) and two constants that are
put in when the files are loaded (``{{app_name}}``, ``{{app_url}}``).

In an HTML part a login is escaped and elsewhere it is not. SES escapes nothing, so the HTML part
goes there with ``{{login_html}}`` for ``{{login}}``, and the data of every mail holds both; over SMTP the
same is rendered here.

SES accepts a mail that lacks a field of its template, and silently sends nothing; hence ``check``,
before a template is used.
"""

from mailroom.templates.checks import Findings, check, check_fetched
from mailroom.templates.mails import Mail, escaped_names, fields, for_ses, render, ses_data
from mailroom.templates.remote import due_change, fetch, push
from mailroom.templates.sources import PARTS, Template, load, write_built_in
from mailroom.templates.tags import placeholders, render_source

__all__ = [
    "PARTS",
    "Findings",
    "Mail",
    "Template",
    "check",
    "check_fetched",
    "due_change",
    "escaped_names",
    "fetch",
    "fields",
    "for_ses",
    "load",
    "placeholders",
    "push",
    "render",
    "render_source",
    "ses_data",
    "write_built_in",
]
