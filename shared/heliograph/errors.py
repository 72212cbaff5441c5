"""Error families, cut by two questions: who can fix it, and may we try again?

| family | who fixes it | try again? | exit code |
|---|---|---|---|
| TrustError | the release's owners | never with these bytes | 4 |
| IntegrityError | nobody: these bytes are wrong | never with these bytes | 4 |
| RefusedError | whoever asked: a rule or gate said no | when the reason is gone | 4 |
| TransportError | time | later | 1 |
| WaitError | time | later | 5 |
| StorageError | whoever has the disk | later | 1 |
| NotFoundError | the operator | with another name | 3 |
| ConfigError | the operator | after the file or argument is mended | 2 |

Messages are lower case, one sentence: what, where, what to do. A programmer's error is none of these and crashes.
"""

from typing import ClassVar


class HeliographError(Exception):
    """Any failure that is told to a person or a peer in one sentence."""

    exit_code: ClassVar[int] = 1


class TrustError(HeliographError):
    """A signature, role, threshold, version or freshness rule was not met. Final for these bytes."""

    exit_code = 4


class IntegrityError(HeliographError):
    """Bytes are not what their digest, length or format says. Final for these bytes."""

    exit_code = 4


class RefusedError(HeliographError):
    """A rule or a gate said no to something well formed."""

    exit_code = 4


class TransportError(HeliographError):
    """A peer could not be reached or did not answer. Try again later."""


class WaitError(HeliographError):
    """What was waited for did not happen in the time given."""

    exit_code = 5


class NotFoundError(HeliographError):
    """No such release, node, site, ring or object."""

    exit_code = 3


class StorageError(HeliographError):
    """The disk took nothing or gave nothing just now; it may do so later."""


class ConfigError(HeliographError):
    """An operator's file, argument or folder is wrong; the message says what, where and what to do."""

    exit_code = 2


_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")


def shown(text: str) -> str:
    """Somebody else's words with a space for each control character, which a terminal would obey."""
    return text.translate(_CONTROLS)
