"""A local SES: an endpoint that keeps mail instead of sending it, for development and for tests.

``InboxServer`` speaks SES's query protocol over HTTP to any client of AWS's, and JSON under ``/api``
to whoever wants to see what arrived. ``Inbox`` is the account behind it; ``Fault`` is what one may
ask to go wrong. It needs the extra ``inbox``.
"""

from mailroom.inbox.faults import Fault
from mailroom.inbox.server import InboxError, InboxServer
from mailroom.inbox.state import Inbox

__all__ = ["Fault", "Inbox", "InboxError", "InboxServer"]
