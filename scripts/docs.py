"""Rewrites the parts of the documents that are made from code: blocks between `generated` and `end` marks, and CLI.md.

`scripts/docs.py` writes; `scripts/docs.py --check` writes nothing and fails, naming what is stale.
"""

import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import typer

from heliograph import documents, manifest, names, policy, protocol
from heliograph.deadlines import DEADLINES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # what a benchmark measured is shown as the benchmark shows it
from bench.deltas import catalogue, forced, hub, report  # noqa: E402

BENCH = ROOT / "tests" / "bench"
BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def topics() -> str:
    """The topic table."""
    who = {"hub": "hub", "node": "every node", "own": "the topic's node", "new": "a node not yet enrolled"}
    rows = (
        (
            f"`{row.pattern.replace('{', '<').replace('}', '>')}`",
            f"{who[row.sender]} → {who[row.reader]}",
            f"{row.qos}{', retained' if row.retain else ''}",
            _payload(row),
        )
        for row in protocol.TOPICS
    )
    return _table(("topic", "from → to", "QoS", "payload"), rows)


def _payload(row: protocol.Topic) -> str:
    match row.payload:
        case "bytes":
            return "bytes"
        case "message":
            title = "denyall" if row.name == "deny" else row.name
            return f"message [{row.name}](FORMATS.md#{title})"
        case "statement":
            return f"statement `{row.statement}`" + ("" if row.document else " (reserved)")
        case "statements":
            return f"list of statements `{row.statement}`"
    typing.assert_never(row.payload)


def statements() -> str:
    """Who signs what."""
    known = {row.statement for row in protocol.TOPICS if row.document} | protocol.DENIALS.keys()
    signer = {"own": "the key of the node in the topic"}
    rows = (
        (f"`{type_}`", signer.get(role, f"`{role}`".replace("{", "<").replace("}", ">")),
         "read" if type_ in known else "reserved: refused and counted")
        for type_, role in protocol.STATEMENTS.items()
    )  # fmt: skip
    return _table(("type", "signed by", "this version"), rows)


def document_fields() -> str:
    """Every document and message, and the parts they are made of."""
    sections = []
    seen: dict[type[documents.Document], None] = {}
    for row in protocol.TOPICS:
        if row.document is not None:
            title = row.pattern if row.name == "deny" else row.statement or row.name
            sections.append(f"### {title}\n\n{_about(row.document)}\n\n{_fields(row.document)}")
            _collect(row.document, seen)
    for title, document in protocol.DENIALS.items():
        sections.append(f"### {title}\n\n{_about(document)}\n\n{_fields(document)}")
    tops = {row.document for row in protocol.TOPICS}
    parts = [f"**{part.__name__}**: {_about(part)}\n\n{_fields(part)}" for part in seen if part not in tops]
    return "\n".join(sections) + "\n### Parts\n\n" + "\n".join(parts)


def _about(model: type[documents.Document]) -> str:
    text = (model.__doc__ or "").split("\n")[0]
    growth = "unknown fields are ignored" if issubclass(model, documents.Part) else "unknown fields are refused"
    return f"{text} ({growth})"


def _collect(annotation: object, seen: dict[type[documents.Document], None]) -> None:
    if isinstance(annotation, type) and issubclass(annotation, documents.Document):
        if annotation not in seen:
            seen[annotation] = None
            for field in annotation.model_fields.values():
                _collect(field.annotation, seen)
        return
    for inner in typing.get_args(annotation):
        _collect(inner, seen)


def _fields(model: type[documents.Document]) -> str:
    rows = (
        (
            f"`{field.alias or name}`",
            _type(field.annotation) + _bounds(field.metadata),
            "required" if field.is_required() else _value(field.default),
        )
        for name, field in model.model_fields.items()
    )
    return _table(("field", "type", "default"), rows)


def _value(value: object) -> str:
    match value:
        case documents.Document():
            return "empty"
        case () | {} | "" | b"":
            return "empty"
        case None:
            return "nil"
        case _:
            return f"`{value}`".lower()


def _bounds(metadata: Iterable[object]) -> str:
    """Bounds in words, from the annotations that pydantic checks."""
    found: dict[str, typing.Any] = {}
    for meta in metadata:
        for part in getattr(meta, "metadata", [meta]):
            for key in ("min_length", "max_length", "ge", "gt", "le", "lt", "multiple_of", "pattern"):
                if getattr(part, key, None) is not None:
                    found[key] = getattr(part, key)
    words = []
    if found.get("pattern") in PATTERNS:
        words.append(PATTERNS[found["pattern"]])
    if "max_length" in found:
        fixed = found.get("min_length") == found["max_length"]
        words.append(f"{'' if fixed else 'at most '}{found['max_length']}")
    signs = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< ", "multiple_of": "multiple of "}
    words += [sign + _number(found[key]) for key, sign in signs.items() if key in found]
    return f" ({', '.join(words)})" if words else ""


PATTERNS = {names.NAME_PATTERN: "a name", names.VERSION_PATTERN: "a version", manifest.FILE_NAME_PATTERN: "a safe path"}


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if power >= 20 and value == 1 << power else str(value)


def _type(annotation: object) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0]) + _bounds(inner[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"list of {_type(inner[0])}"
        return "[" + ", ".join(map(_type, inner)) + "]"
    if origin is dict:
        return f"map of {_type(inner[0])} to {_type(inner[1])}"
    if inner:
        return " or ".join("nil" if part is type(None) else _type(part) for part in inner)
    if isinstance(annotation, type) and not issubclass(annotation, documents.Document):
        return {"bytes": "bin", "str": "text", "NoneType": "nil"}.get(annotation.__name__, annotation.__name__)
    return "any" if annotation is typing.Any else str(getattr(annotation, "__name__", annotation))


def manifest_fields() -> str:
    """The manifest and the tables in it."""
    seen: dict[type[documents.Document], None] = {}
    _collect(manifest.Manifest, seen)
    return "\n".join(f"**{model.__name__}**: {_about(model)}\n\n{_fields(model)}" for model in seen)


def release_toml() -> str:
    """What an operator may write."""
    rows = ((f"`{field}`", kind, default, meaning) for field, kind, default, meaning in manifest.explain())
    return _table(("field", "type", "default", "meaning"), rows)


def policy_fields() -> str:
    """What an operator may write into a policy."""
    return _meanings(policy.explain())


def config_fields() -> str:
    """What an operator may write into a config."""
    return _meanings(policy.explain_config())


def _meanings(rows: Iterable[policy.Row]) -> str:
    head = ("field", "type", "default", "unit", "who enforces", "off line the node does", "meaning")
    return _table(
        head,
        (
            (f"`{row.field}`", row.type, row.default, said.unit, said.by, said.offline, said.says)
            for row in rows
            for said in (row.meaning,)
        ),
    )


def deadlines() -> str:
    """The deadline table."""
    values = ((f"`{field.name}`", f"{getattr(DEADLINES, field.name):g}") for field in dataclasses.fields(DEADLINES))
    return _table(("deadline", "value"), values)


def delta_pairs() -> str:
    """The pairs that the delta bench knows."""
    rows = ((f"`{pair.name}`", pair.kind, pair.source) for pair in catalogue.pairs(BENCH / "models.toml"))
    return _table(("pair", "kind", "where it comes from"), rows)


def delta_bench() -> str:
    """What the delta bench measured last with --docs."""
    found = forced.slowest(forced.parse((BENCH / "delta_forced.csv").read_text()))
    return report.markdown(report.parse((BENCH / "delta.csv").read_text()), found)


def delta_forced() -> str:
    """How fast operations are where they are forced, last with --forced --docs."""
    return forced.markdown(forced.parse((BENCH / "delta_forced.csv").read_text()))


def delta_hub() -> str:
    """What it found that making takes in a hub's child, last with --hub --docs."""
    return hub.markdown(hub.parse((BENCH / "delta_hub.csv").read_text()))


BLOCKS: dict[str, Callable[[], str]] = {
    "topics": topics,
    "statements": statements,
    "documents": document_fields,
    "manifest": manifest_fields,
    "release-toml": release_toml,
    "policy-fields": policy_fields,
    "config-fields": config_fields,
    "deadlines": deadlines,
    "delta-pairs": delta_pairs,
    "delta-bench": delta_bench,
    "delta-forced": delta_forced,
    "delta-hub": delta_hub,
}


def cli() -> str:
    """Every command with its arguments and options, from the commands themselves."""
    head = "# The `heliograph` command\n\nMade by `scripts/docs.py` from the commands themselves.\n\n"
    found = sorted(entry_points(group="heliograph.commands"), key=lambda entry: entry.name)
    groups = (typer.main.get_command(entry.load()) for entry in found)
    return head + "\n".join(
        text for entry, group in zip(found, groups, strict=True) for text in _command(group, entry.name)
    )


def _command(command: typing.Any, path: str) -> Iterator[str]:
    about = " ".join((command.help or "").split("\n\n")[0].split())
    if getattr(command, "commands", None):
        yield f"## {path}\n\n{about}\n"
        for name, inner in command.commands.items():
            yield from _command(inner, f"{path} {name}")
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    shown = " ".join(_argument(argument) for argument in arguments)
    lines = [f"### heliograph {path} {shown}".rstrip(), "", about, ""]
    for param in [*arguments, *options]:
        name = _argument(param) if param in arguments else ", ".join([*param.opts, *param.secondary_opts])
        text = " ".join((getattr(param, "help", None) or "").split())
        lines.append(f"- `{name}`" + (f": {text}" if text else ""))
    yield "\n".join(lines).rstrip() + "\n"


def _argument(param: typing.Any) -> str:
    name = param.metavar or (param.name or "").upper()
    if param.nargs == -1:
        name += "..."
    return name if param.required else f"[{name}]"


def fresh(path: Path) -> str:
    """What the file should say."""
    if path.name == "CLI.md":
        return cli()
    return BLOCK.sub(lambda found: found[1] + BLOCKS[found["name"]]() + found[3], path.read_text())


def main(arguments: list[str]) -> int:
    """Writes, or with --check compares."""
    check = "--check" in arguments
    stale = 0
    files = [ROOT / "README.md", *sorted((ROOT / "shared").glob("*.md"))]
    for path in sorted({*files, ROOT / "shared" / "CLI.md"}):
        old, new = path.read_text() if path.exists() else "", fresh(path)
        if old == new:
            continue
        stale += 1
        print(f"{path.relative_to(ROOT)} is {'stale: run scripts/docs.py' if check else 'written anew'}")
        if check:
            print("\n".join(list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0))[:12]))
        else:
            path.write_text(new)
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
