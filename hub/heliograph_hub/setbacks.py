"""What a node held once and holds no more: a sign that an older copy of its storage runs.

A node never gives up signed knowledge by itself. Metadata versions go back only under a newer root (a rotation of keys
forgets what they signed), an assignment's number only under newer targets. Anything else is yesterday's database on the
node's disk, or another machine with a copy of it.

Pure: what the node said before and what it says now come in, sentences for people go out.
"""

from collections.abc import Mapping

from heliograph.documents import Reported

WENT_BACK = "went back"
"""What is counted when a node holds less than it held: an alarm, until it is enrolled anew."""


def setbacks(before: Reported, tuf: Mapping[str, int], denials: int, assignment: int) -> tuple[str, ...]:
    """What went back since the node's last signed report, in words.

    Args:
        before: the report.
        tuf: version of each metadata role that the node names now.
        denials: how many it says that it holds.
        assignment: the number of the assignment that it says it has.
    """
    root, root_before = tuf.get("root", 0), before.tuf.get("root", 0)
    if root < root_before:
        return (f"root metadata from {root_before} to {root}",)
    if root > root_before:
        return ()
    found = [
        f"{role} metadata from {version} to {tuf[role]}" if role in tuf else f"{role} metadata {version} is gone"
        for role, version in sorted(before.tuf.items())
        if tuf.get(role, 0) < version
    ]
    if denials < before.deny.count:
        found.append(f"denials held from {before.deny.count} to {denials}")
    if assignment < before.assignment and tuf.get("targets") == before.tuf.get("targets"):
        found.append(f"assignment from {before.assignment} to {assignment}")
    return tuple(found)
