"""What the hub's log says of acts that concern one node, each as one plain sentence.

A row of the log is `PATH field=value…` of a request that changed something, with what was signed after it, or
`signed TYPE: …` of the hub's own (`api.log`, `duties`). An act concerns a node if it names the node, its site, its
ring, or one of its models. What concerns every node alike and names none, as a change of keys, is the log's alone.

Pure: words of rows come in, sentences for people go out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FIELD = re.compile(r"(?:^| )([a-z_]+)=([^ ]*)")
_SIGNED = re.compile(r"(?:^|, | )(site|node|ring|model|number|action|releases|keys|keep|release) ([^,]+)")


@dataclass(frozen=True, slots=True)
class Concern:
    """What is of one node.

    Attributes:
        ring: the one it is in now.
        models: those that it, or its assignment, names.
        names: of the hub's releases, by the first 16 hex digits of their digests.
    """

    site: str
    node: str
    ring: str
    models: frozenset[str]
    names: Mapping[str, str]

    def is_model_of(self, release: str) -> bool:
        """Whether `model@version` is of one of its models."""
        return release.partition("@")[0] in self.models

    def releases(self, prefixes: str) -> list[str]:
        """Releases by the beginnings of their digests, for people."""
        return [self.names.get(one, one) for one in prefixes.split()]


def act(what: str, concern: Concern) -> str | None:
    """What a row of the log says was done; None: nothing that concerns the node."""
    path, _, rest = what.partition(" ")
    given = dict(_FIELD.findall(rest))
    match path.split("/"):
        case ["signed"]:
            return _signed_by_hub(rest, concern)
        case ["began"]:
            model = rest.partition(" of ")[2].partition(":")[0]
            return what if model in concern.models else None
        case ["releases"]:
            name = given.get("release", "")
            return f"added release {name}" if concern.is_model_of(name) else None
        case ["releases", model, "rekey"]:
            return f"began new keys of confidential releases of {model}" if model in concern.models else None
        case ["candidates", candidate]:
            duty, _, name = candidate.partition("-")
            done = {"sign": "signed", "approve": "approved"}.get(duty, duty)
            return f"{done} release {name}" if concern.is_model_of(name) else None
        case ["rollouts"]:
            name = given.get("release", "")
            return f"started the rollout of {name}" if concern.is_model_of(name) else None
        case ["rollouts", model, version, action]:
            return _rollout(f"{model}@{version}", action, given, rest, concern) if model in concern.models else None
        case ["denials"]:
            return _denial(rest, concern)
        case ["documents"]:
            kind, signed = given.get("kind", ""), dict(_SIGNED.findall(rest.partition(" ")[2]))
            return _document(f"set {kind}", signed, concern)
        case ["fleet", *below]:
            return _fleet(below, given, rest, concern)
    return None


def _rollout(name: str, action: str, given: Mapping[str, str], rest: str, concern: Concern) -> str | None:
    ring = given.get("ring")
    if ring is not None and ring != concern.ring:
        return None
    where = f" in ring {ring}" if ring else " in every ring"
    match action:
        case "promote":
            return f"promoted {name} to {'ring ' + given['to'] if 'to' in given else 'the next ring'}"
        case "abort":
            return f"aborted the rollout of {name}{where}"
        case "return":
            return f"ordered the return from {name}{where}"
        case "pause":
            let = ", who had begun may end" if "let_running" in given else ""
            return f"paused the rollout of {name}{let}"
        case "resume":
            return f"had the rollout of {name} go on"
        case "signatures":
            signed = dict(_SIGNED.findall(rest))
            if signed.get("ring", concern.ring) != concern.ring:
                return None
            return f"signed the directive of ring {signed.get('ring', 'protected')}: {signed.get('action', '')} {name}"
    return f"{action} of {name}"


def _signed_by_hub(rest: str, concern: Concern) -> str | None:
    kind, _, words = rest.partition(": ")
    signed = dict(_SIGNED.findall(words))
    number, ring = signed.get("number", "?"), signed.get("ring", "?")
    match kind:
        case "directive":
            if ring != concern.ring or signed.get("model") not in concern.models:
                return None
            about = ", ".join(concern.releases(signed.get("release", ""))) or signed["model"]
            return f"signed directive {number} of ring {ring}: {signed.get('action', '')} {about}"
        case "assignment":
            is_its = (signed.get("site"), signed.get("node")) == (concern.site, concern.node)
            return f"signed its assignment {number}: ring {ring}" if is_its else None
    return _document(f"signed {kind}", signed, concern)


def _document(done: str, signed: Mapping[str, str], concern: Concern) -> str | None:
    number = signed.get("number", "?")
    if "model" in signed:
        return f"{done} {number} of {signed['model']}" if signed["model"] in concern.models else None
    if signed.get("ring") == concern.ring:
        return f"{done} {number} of ring {concern.ring}"
    return None


def _denial(rest: str, concern: Concern) -> str | None:
    signed = dict(_SIGNED.findall(rest.partition(" ")[2]))
    if "keys" in signed:
        return f"denied key {signed['keys']} and all that it vouched for"
    named = concern.releases(signed.get("releases", ""))
    known = [name for name in named if "@" not in name or concern.is_model_of(name)]
    return f"denied {', '.join(known)}" if known else None


def _fleet(below: list[str], given: Mapping[str, str], rest: str, concern: Concern) -> str | None:
    """Acts on nodes: by the path, or by the fields of the request."""
    its = [concern.site, concern.node]
    if below[:2] == its:
        match below[2:]:
            case ["pins"]:
                if "release" in given:
                    return f"pinned it to {given['release']}"
                return f"took the pin of {given.get('clear', 'a model')} away"
            case ["relay"]:
                return f"made it a relay at {given['relay']}" if "relay" in given else "made it no relay"
            case ["commands"]:
                about = f" of {given['model']}" if "model" in given else ""
                return f"ordered {given.get('kind', 'a command')}{about}"
            case ["remove"]:
                return "removed it: its key counts no more"
        return None
    signed = dict(_SIGNED.findall(rest))
    site, node = given.get("site", signed.get("site")), given.get("node", signed.get("node"))
    if site != concern.site or node not in (None, concern.node):
        return None
    match below:
        case ["tokens"]:
            return "made a join string for it"
        case ["tokens", "revoke"]:
            return "made its open join strings worthless"
        case ["assignments"]:
            return f"put site {site} into ring {given.get('ring', '?')}"
        case ["labels"]:
            return f"changed labels of {'it' if node else f'site {site}'}"
        case ["signatures"]:
            return f"signed its assignment {signed.get('number', '?')}: ring {signed.get('ring', '?')}"
    return None
