"""[IO] Makes a hub and its realm in a folder: for development, with every key on this disk, or by a ceremony.

Rule 1: what a crash leaves, init again finishes; no key and no finished realm is ever overwritten.
Rule 2: in a ceremony only the keys of `ONLINE_ROLES` are made here. Of all others the hub is given the public halves;
    the first root and the first targets wait in `metadata/pending/change.json` until enough of them have signed.
Rule 3: a key has one role, so that nobody has two duties by having one file.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from heliograph import trust
from heliograph.blob import sha256
from heliograph.documents import Heads
from heliograph.errors import ConfigError, RefusedError
from heliograph.names import check_name
from heliograph.objects import write_durably
from heliograph.signing import PrivateKey, PublicKey
from heliograph_hub import ceremony, request
from heliograph_hub.access import init_access
from heliograph_hub.authority import UNFINISHED, assemble, root_path
from heliograph_hub.ceremony import ONLINE_ROLES, STATEMENT_ROLES, TUF_ROLES, Staffing, key_names, paths_of, staffing_of
from heliograph_hub.client import HUB_FILE
from heliograph_hub.database import DATABASE_FILE, Database
from heliograph_hub.keys import PUBLIC_SUFFIX, KeyDir, load_public
from heliograph_hub.request import METADATA, Ask, Group, good_signatures, keys_in, signed_file

CHANGE_FILE = Path("metadata") / "pending" / "change.json"
OFFLINE_ROLES = tuple(role for role in TUF_ROLES | STATEMENT_ROLES if role not in ONLINE_ROLES)
"""Roles that a ceremony must bring keys for; those of models may come with it, or later."""
_NUMBERED = re.compile(r"(.+?)(-[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Founding:
    """A realm on its way: what is still to be signed; nothing once it is finished."""

    asks: tuple[Ask, ...]
    said: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether the realm is finished."""
        return not self.asks


def init_hub(folder: Path, realm: str, now: int, ca: tuple[Path, Path] | None = None) -> list[str]:
    """Makes a development realm as `init_realm`, with its database and its CA, or takes that.

    Args:
        ca: files of an authority for the broker, and of its key.

    Returns:
        Sentences to be shown to the operator.

    Raises:
        ConfigError, RefusedError: the folder, the name or the authority won't do.
    """
    return [*init_realm(folder, realm, now), *_furnish(folder, realm, now, ca)]


def init_ceremony(
    folder: Path,
    realm: str,
    key_folders: list[Path],
    thresholds: Mapping[str, int],
    signed: list[Path],
    now: int,
    ca: tuple[Path, Path] | None = None,
) -> Founding:
    """Begins a hub whose realm has offline keys, or goes on with it; finished once every signature is there.

    Raises:
        ConfigError, RefusedError, TrustError: as `init_offline` and `continue_offline`.
    """
    begun = Founding((), ())
    if key_folders:
        begun = init_offline(folder, realm, read_public_keys(key_folders), thresholds, now)
        if not (folder / HUB_FILE).exists():
            begun = replace(begun, said=(*begun.said, *_furnish(folder, realm, now, ca)))
    return continue_offline(folder, signed, now) if signed or not key_folders else begun


def init_realm(
    folder: Path, realm: str, now: int, *, entropy: Callable[[int], bytes] = secrets.token_bytes
) -> list[str]:
    """Makes a development realm in `folder`: all keys on this disk, root, targets, snapshot and timestamp signed.

    On disk when this returns. If it is interrupted, running it again with the same realm finishes it.

    Args:
        folder: new, or empty.
        realm: its name.
        now: seconds since 1970.
        entropy: gives so many random bytes.

    Returns:
        Sentences to be shown to the operator.

    Raises:
        ConfigError: the name is not a name, the folder holds something else or can't be made.
        RefusedError: there is a realm here already.
    """
    marker = _begin(folder, realm, realm)
    if not (folder / "metadata" / "state").exists():
        keys = KeyDir(folder / "keys")
        staff: dict[str, list[PrivateKey]] = {
            role: [keys.make(name, entropy) for name in key_names(role, staffing)]
            for role, staffing in (TUF_ROLES | STATEMENT_ROLES).items()
        }
        public = {role: [key.public for key in held] for role, held in staff.items()}
        root = ceremony.sign(ceremony.make_root(realm, "development", 1, public, TUF_ROLES, now), staff["root"])
        for part in ("root", "pending"):
            (folder / "metadata" / part).mkdir(parents=True, exist_ok=True)
        write_durably(root_path(folder, 1), root)
        targets = ceremony.make_targets(1, now)
        for role, staffing in STATEMENT_ROLES.items():
            ceremony.delegate(targets.signed, role, public[role], staffing.threshold, [])
        empty = trust.bootstrap(root, sha256(root))
        files = {"targets": (1, ceremony.sign(targets, staff["targets"]))}
        new = assemble(empty, files, Heads(), now, staff["snapshot"], staff["timestamp"])
        write_durably(folder / "metadata" / "state", trust.state_to_bytes(new))
    marker.unlink()
    count = len(list((folder / "keys").glob("*.key")))
    return [
        f"realm {realm} is ready in {folder}.",
        f"THIS IS A DEVELOPMENT REALM: all {count} private keys, root's too, lie on this disk in {folder / 'keys'}.",
        "Whoever reads that folder can sign anything for every node of the realm: don't run machines you need on it.",
    ]


def read_public_keys(folders: Iterable[Path]) -> dict[str, list[PublicKey]]:
    """The public keys in these folders by role: `ROLE.pub`, or `ROLE-1.pub`, `ROLE-2.pub`, …

    Raises:
        ConfigError: a file names no role, is no public key, or one key stands under two names.
    """
    found: dict[str, list[PublicKey]] = {}
    seen: dict[bytes, Path] = {}
    for folder in folders:
        files = sorted(folder.glob(f"*{PUBLIC_SUFFIX}")) if folder.is_dir() else []
        if not files:
            raise ConfigError(f"{folder} holds no {PUBLIC_SUFFIX} files: heliograph key make {folder}/root-1.key, …")
        for path in files:
            match = _NUMBERED.fullmatch(path.stem)
            assert match is not None  # any name fits
            role = match[1]
            if staffing_of(role) is None:
                raise ConfigError(f"{path} names no role: roles are {', '.join(OFFLINE_ROLES)}, sign-MODEL, …")
            if role in ONLINE_ROLES:
                raise ConfigError(f"{path} is of {role}, whose key is the hub's own and is made by hub init")
            key = load_public(path)
            if key.keyid in seen:
                raise ConfigError(f"{path} is the key of {seen[key.keyid]}: every role has its own keys")
            seen[key.keyid] = path
            found.setdefault(role, []).append(key)
    return found


def staff(public: Mapping[str, list[PublicKey]], thresholds: Mapping[str, int]) -> dict[str, Staffing]:
    """How each role is staffed by these keys; thresholds not given are the usual ones.

    Raises:
        ConfigError: a role that every realm has got no keys, or fewer than must sign.
    """
    for role in thresholds:
        if role not in public:
            raise ConfigError(f"--threshold {role}={thresholds[role]}: there are no keys of {role}, {role}-1.pub, …")
    staffed = {}
    for role in (*OFFLINE_ROLES, *(role for role in sorted(public) if role not in OFFLINE_ROLES)):
        usual = staffing_of(role)
        assert usual is not None  # read_public_keys looked
        keys, need = len(public.get(role, [])), thresholds.get(role, usual.threshold)
        if not 0 < need <= keys:
            wanted = f"{role}{PUBLIC_SUFFIX}" if usual.keys == 1 else f"{role}-1{PUBLIC_SUFFIX}, …"
            one = f", or say --threshold {role}={keys}" if keys else ""
            raise ConfigError(f"role {role} has {keys} keys and {need} must sign: put {wanted} in the folder{one}")
        staffed[role] = Staffing(keys, need)
    return staffed


def init_offline(
    folder: Path,
    realm: str,
    public: Mapping[str, list[PublicKey]],
    thresholds: Mapping[str, int],
    now: int,
    *,
    entropy: Callable[[int], bytes] = secrets.token_bytes,
) -> Founding:
    """Begins a realm whose root, duties and denials are signed elsewhere, or goes on with it. On disk on return.

    Raises:
        ConfigError: as `staff`; or the folder holds another realm that was begun.
        RefusedError: there is a realm here already.
    """
    staffed = staff(public, thresholds)
    marker = _begin(folder, realm, f"{realm} ceremony")
    online = {
        role: [_maker(folder, entropy)(name).public for name in key_names(role, (TUF_ROLES | STATEMENT_ROLES)[role])]
        for role in ONLINE_ROLES
    }
    keys = {**public, **online}
    staffed |= {role: (TUF_ROLES | STATEMENT_ROLES)[role] for role in ONLINE_ROLES}
    path = folder / CHANGE_FILE
    if path.exists():
        _, asks = request.read(path)
        if [ask.words()[1:] for ask in asks] != [ask.words()[1:] for ask in _first(realm, keys, staffed, now)]:
            raise ConfigError(f"{folder} was begun with other keys or thresholds: give the same, or remove the folder")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        request.write(path, realm, _first(realm, keys, staffed, now))
    marker.touch()
    return continue_offline(folder, [], now)


def continue_offline(folder: Path, signed: Iterable[Path], now: int) -> Founding:
    """Adds the signatures in these files to a realm that was begun, and finishes it with the last one needed.

    Raises:
        ConfigError: no ceremony was begun here, or a file is another realm's or no request.
        TrustError: a signature is not by a key that counts, or doesn't fit.
    """
    marker = folder / UNFINISHED
    if not (folder / CHANGE_FILE).exists() or not marker.exists():
        raise ConfigError(
            f"{folder} holds no realm on its way: heliograph hub init DIR --offline-keys KEYDIR begins one"
        )
    realm, asks = request.read(folder / CHANGE_FILE)
    known = keys_in(asks)
    for path in signed:
        of, given = request.read(path)
        if of != realm:
            raise ConfigError(f"{path} is of realm {of}, {folder} is of {realm}")
        for one in given:
            asks = [_with(ask, one, known) if ask.name == one.name else ask for ask in asks]
            if one.name not in [ask.name for ask in asks]:
                raise ConfigError(f"{path} carries {one.name}, which is not waited for in {folder}")
    request.write(folder / CHANGE_FILE, realm, asks)
    waiting = tuple(ask for ask in asks if ask.lacks)
    if waiting:
        said = [f"{ask.name} lacks {ask.lacks} more of its signatures" for ask in waiting]
        return Founding(tuple(asks), tuple(said))
    files = {ask.name: signed_file(ask) for ask in asks}
    root = files.pop("root")
    (folder / "metadata" / "root").mkdir(parents=True, exist_ok=True)
    write_durably(root_path(folder, 1), root)
    empty = trust.bootstrap(root, sha256(root))
    keys = KeyDir(folder / "keys")
    snapshot_keys, timestamp_keys = (keys.find(empty.role_keys(role)[1]) for role in ("snapshot", "timestamp"))
    new = assemble(empty, {"targets": (1, files["targets"])}, Heads(), now, snapshot_keys, timestamp_keys)
    write_durably(folder / "metadata" / "state", trust.state_to_bytes(new))
    (folder / CHANGE_FILE).unlink()
    marker.unlink()
    online = sorted(path.name for path in keys.folder.glob("*.key"))
    said = [
        f"realm {realm} is ready in {folder}; its {len(online)} keys here are the online ones: {', '.join(online)}."
    ]
    alone = [
        role
        for role in ("root", "targets", *(f"approve-{model}" for model in new.models))
        if new.role_keys(role)[0] == 1
    ]
    if alone:
        said.append(f"THIS IS A ONE-PERSON REALM: one key is enough for {', '.join(alone)}.")
    return Founding((), tuple(said))


def _furnish(folder: Path, realm: str, now: int, ca: tuple[Path, Path] | None) -> list[str]:
    """All of a hub's folder that isn't keys and metadata."""
    Database(folder / DATABASE_FILE).close()
    said = [init_access(folder, realm, now, ca)]
    write_durably(
        folder / HUB_FILE, f'# A Heliograph hub. Operators name this folder.\nformat = 1\nrealm = "{realm}"\n'.encode()
    )
    return said


def _maker(folder: Path, entropy: Callable[[int], bytes]) -> Callable[[str], PrivateKey]:
    keys = KeyDir(folder / "keys")
    return lambda name: keys.make(name, entropy)


def _first(realm: str, keys: Mapping[str, list[PublicKey]], staffed: Mapping[str, Staffing], now: int) -> list[Ask]:
    """The first root and the first targets, to be signed."""
    root = ceremony.make_root(realm, "production", 1, keys, staffed, now)
    targets = ceremony.make_targets(1, now)
    for role in sorted(set(staffed) - set(TUF_ROLES)):
        ceremony.delegate(targets.signed, role, keys[role], staffed[role].threshold, paths_of(role))

    def group(role: str) -> tuple[Group, ...]:
        return (Group(staffed[role].threshold, frozenset(key.keyid for key in keys[role])),)

    return [
        Ask("root", METADATA, "root", root.to_bytes(), group("root"), {}),
        Ask("targets", METADATA, "targets", targets.to_bytes(), group("targets"), {}),
    ]


def _with(ask: Ask, given: Ask, known: Mapping[bytes, bytes]) -> Ask:
    """The ask with the signatures that were given for it."""
    return replace(ask, signatures={**ask.signatures, **good_signatures(ask, known, given.signatures)})


def _begin(folder: Path, realm: str, mark: str) -> Path:
    """Marks the folder as that of a realm that isn't finished; the mark's path."""
    check_name(realm, "realm")
    marker = folder / UNFINISHED
    if not marker.exists():
        if (folder / "metadata" / "state").exists():
            raise RefusedError(f"{folder} holds a realm already: its keys are never overwritten, choose another folder")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} holds something else than a realm: choose a new or empty folder")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            write_durably(marker, mark.encode(), mode=0o600)
        except OSError as error:
            raise ConfigError(f"{folder} can't be made ({error.strerror}): choose a folder you may write to") from error
    elif marker.read_bytes() != mark.encode():
        begun = marker.read_bytes()[:60].decode(errors="replace")
        raise ConfigError(
            f"{folder} holds the unfinished realm {begun!r}: init it again by that name, or remove the folder"
        )
    return marker
