"""The broker's access list, generated from the table of topics: a node reaches its own subtree and what is for all.

Users: the hub is `hub`; a node is `<site>/<node>`, with and without certificate, so that `%u` fences it. New nodes come
in by a listener of their own under the name they want, and reach nothing but their enrolment.

Rule: every line comes from a row of TOPICS. What is not listed is denied.

`python -m heliograph.acl REALM` prints the list for nodes, `python -m heliograph.acl REALM enroll` that for new nodes.
"""

import re
import sys
from collections.abc import Iterable
from typing import Literal

from heliograph.names import check_name
from heliograph.protocol import PREFIX, TOPICS, Topic

HUB_USER = "hub"
EXAMPLE_REALM = "example"
"""The realm of the copies in mosquitto/."""
ENROLLING_READS = ("head", "set", "root", "assigned", "certified", "refused")
"""Rows a new node reads: what it learns to trust, and what it becomes."""

Listener = Literal["nodes", "enroll"]


def acl_text(realm: str, listener: Listener = "nodes", removed: Iterable[str] = ()) -> str:
    """A Mosquitto ACL file for one realm and one kind of listener; users that were `removed` reach nothing."""
    check_name(realm, "realm")
    lines = [
        f"# Generated from the table of topics by python -m heliograph.acl {realm}{' enroll' * (listener == 'enroll')}",
        "# Do not edit. %u is the user name, <site>/<node>. What is not listed is denied.",
        "",
    ]
    if listener == "enroll":
        lines += [_line("write", realm, row) for row in TOPICS if row.sender == "new"]
        lines += [_line("read", realm, row) for row in TOPICS if row.name in ENROLLING_READS]
    else:
        lines += [f"user {HUB_USER}", f"topic readwrite {PREFIX}/{realm}/#", "topic read $SYS/#", ""]
        for user in sorted(removed):
            site, _, node = user.partition("/")
            check_name(site, "user's site")
            check_name(node, "user's node")
            lines += [f"user {user}", "topic deny #", ""]
        lines += [_line("write", realm, row) for row in TOPICS if row.sender == "own"]
        lines += [_line("read", realm, row) for row in TOPICS if row.reader in ("own", "node")]
    return "\n".join(lines) + "\n"


def _line(access: str, realm: str, row: Topic) -> str:
    below = row.pattern.replace("{site}/{node}", "%u")
    return f"pattern {access} {PREFIX}/{realm}/" + re.sub(r"\{\w+\}", "+", below)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["enroll"]):
        sys.exit("usage: python -m heliograph.acl REALM [enroll]")
    sys.stdout.write(acl_text(sys.argv[1], "enroll" if len(sys.argv) == 3 else "nodes"))
