"""Tells from a provider's words what a refusal is about: the sender or the account, or one recipient.

The words are those of the common mail servers and providers. What neither function recognises may be about
either. Addresses are not part of the words, since a recipient chooses its own.
"""

from __future__ import annotations

import re
from email.utils import parseaddr
from typing import Final

_ADDRESS: Final = re.compile(r"\S+@\S+|<recipient>")
# What follows are the words of another server, which a recipient may have chosen.
_QUOTED: Final = re.compile(r"\b(said|response|responded|replied)\b\W*:", re.IGNORECASE)
# X.1.7, X.1.8: bad sender. X.1.90, 5.4.5: daily limit. X.2.252, X.2.254: sender denied, sender throttled.
# X.7.x: authentication, SPF, DKIM, DMARC, relaying, and what Microsoft 365 says of senders and tenants.
_OUR_CODES: Final = r"""
    \b[45]\.(1\.(7|8|90) | 2\.25[24] |
             7\.(3|8|9|14|2[0-7]|54|57|60|64|139|50[1-46-9]|51[01]|60[6-9]|6[1-4]\d|7\d\d))\b |
    \b5\.4\.5\b"""
_OUR_SENDER: Final = r"""
    sender\ address\ rejected | sender\ (verify|verification)\ failed | send\ ?as\ ?denied |
    permissions?\ to\ send\ as | outbound\ ?(sender|spam) | outgoing\ blocked | unusual\ sending\ activity |
    not\ (allowed|authori[sz]ed|permitted)\ to\ (send|relay)\b(?!\ (e?-?mails?\ |messages?\ )?to\b) |
    \b(from|sender)\b.{0,60}\bnot\b.{0,20}(verified|validated|match|one\ of\ your|signature) |
    verified\ sender\ identity | unconfigured\ sending\ domain | unregistered\ domain |
    domain\ (is\ |has\ )?not\ (been\ )?verified | configuration\ set"""
_OUR_ACCESS: Final = r"""
    relay(ing)?\ (access\ )?(is\ )?(denied|disallowed|prohibited|not\ (permitted|allowed)) |
    unable\ to\ relay | credentials\ for\ relay | allowed\ rcpthosts |
    (?<!authrequired;\ )authentication\ required |
    unauthenticated | access\ denied:\ user | client\ host\b.{0,60}(rejected|blocked) |
    helo\ command\ rejected | (banned\ sending|unauthorized)\ ip | client\ blocked"""
_OUR_ACCOUNT: Final = r"""
    sending\ (is\ |has\ been\ )?(paused|suspended|disabled) |
    your\ account\ (is|has|was|does|needs|must)\b | pending\ approval |
    free\ accounts\ are | sandbox\ subdomain | (maximum|insufficient|out\ of)\ credits |
    (submission|sending)\ (limit|quota)\ exceeded | exceeded\ the\ max |
    \b(daily|hourly|monthly|per\ (hour|day|month))\b.{0,60}\b(limit|quota|exceeded) |
    \b(limit|quota|exceeded)\b.{0,40}\b(daily|hourly|monthly|per\ (hour|day|month))\b"""
_OURS: Final = re.compile(
    "|".join((_OUR_CODES, _OUR_SENDER, _OUR_ACCESS, _OUR_ACCOUNT)), re.IGNORECASE | re.VERBOSE | re.DOTALL
)

# X.1.1 to X.1.6, X.1.10: no such address. X.2.1 to X.2.4: the mailbox is disabled or full.
_THEIRS: Final = re.compile(
    r"""
    \b[45]\.1\.(1|2|3|4|6|10)\b | \b[45]\.2\.[1-4]\b | \b[45]\.4\.1\ recipient\ address\ rejected |
    \b(unknown|no\ such|invalid|inactive|unrouteable|illegal|malformed)\ (local\ )?
        (user|person|recipient|mailbox|e?-?mail|address)\b |
    \b(user|recipient(?!\ address\ rejected)|mailbox)\b.{0,80}
        \b(unknown|not\ found|does\ ?n[o']t\ exist|disabled|inactive|full|over\ ?quota) |
    e-?mail\ account\ that\ you\ tried\ to\ reach |
    \baddress\b.{0,80}\b(is\ )?(illegal|malformed|invalid|blacklisted|on\ the\ suppression\ list) |
    missing\ final\b | \b(domain|local\ address)\ (contains|starts|ends)\b
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def about_sender(words: str) -> bool:
    """Whether a refusal is known to be about the sender, the client or the account, not about a recipient."""
    return bool(_OURS.search(_ADDRESS.sub("", _QUOTED.split(words)[0])))


def about_recipient(words: str) -> bool:
    """Whether a refusal is known to be about one recipient's address or mailbox."""
    return bool(_THEIRS.search(_ADDRESS.sub("", words)))


def is_unverified(words: str, source: str) -> bool:
    """Whether SES refuses a mail because the sender's address or domain is not verified.

    In the sandbox SES says the same of recipients. It lists the identities at fault.
    """
    address = parseaddr(source)[1].lower()
    named = re.findall(r"[^\s,;<>\"]+", words.lower().partition("not verified")[2])
    return address in named or address.rpartition("@")[2] in named
