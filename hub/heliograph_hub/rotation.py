"""[IO] Changes of who may do what: the next root, the next targets, and what their keys have to sign again with them.

    DIR/metadata/pending/change.json    the one change that waits for signatures (`request`)

Rule 1: a change is published whole or not at all: where new keys don't vouch for a file that stands, that file is part
    of the change, with the same content and the next version.
Rule 2: a root is signed by the threshold of the root before it and by its own; targets by whom the root names, a
    duty's file by whom targets names.
Rule 3: a further change to what waits is added to it, and it loses its signatures: everybody signs the same bytes. What
    was published anew meanwhile makes it stale: then it is made anew upon that.
Rule 4: the hub never gives away a key that it needs: the online roles keep as many keys here as must sign.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tuf.api.metadata import Metadata, Root, Targets

from heliograph.errors import ConfigError, NotFoundError, RefusedError
from heliograph.metadata import delegations, is_verified, load
from heliograph.names import check_name
from heliograph.signing import PublicKey
from heliograph_hub import ceremony, request
from heliograph_hub.authority import Authority
from heliograph_hub.ceremony import ONLINE_ROLES, TUF_ROLES, paths_of, staffing_of
from heliograph_hub.founding import CHANGE_FILE
from heliograph_hub.request import METADATA, Ask, Group, good_signatures, keys_in, signed_file

_TUF = tuple(TUF_ROLES)


class Rotation:
    """The change that waits, if any, in one realm."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._path = authority.folder / CHANGE_FILE

    def asks(self) -> list[Ask]:
        """What waits for signatures; nothing if no change was begun, or it has gone stale."""
        if not self._path.exists():
            return []
        _, asks = request.read(self._path)
        return [] if self._is_stale(asks) else asks

    def propose(
        self, role: str, add: Sequence[PublicKey], remove: Sequence[bytes], threshold: int | None, now: int
    ) -> list[str]:
        """Words the next root or targets in which the role has these keys; on disk when this returns.

        With nothing to change, what the role signs is only made anew, to count for longer.

        Returns:
            Sentences to be shown to the operator.

        Raises:
            NotFoundError: no such role, or a key that is to be removed isn't one of its keys.
            RefusedError: a key has another role, or too few would be left.
        """
        before = self.asks()
        waiting = {ask.name: ask.metadata().signed for ask in before}
        said = []
        if any(ask.signatures for ask in before):
            said.append("what waited for signatures has changed and lost those it had: have it signed anew")
        root, targets = waiting.get("root"), waiting.get("targets")
        again = {name for name in waiting if name not in ("root", "targets")}
        assert root is None or isinstance(root, Root)
        assert targets is None or isinstance(targets, Targets)
        if role in _TUF:
            root = root or self._next_root(now)
            self._edit(root, role, add, remove, threshold)
        elif not (add or remove or threshold) and role in self._authority.set.delegated:
            again.add(role)
        else:
            self._require_known(role, bool(add))
            targets = targets or self._next_targets(now)
            self._edit(targets, role, add, remove, threshold)
        if role == "targets" and targets is None:
            targets = self._next_targets(now)  # its new keys have signed nothing yet, or it is to count for longer
        asks = self._all(root, targets, again, now)
        request.write(self._path, self._authority.realm, asks)
        return [*said, *(f"{ask.name} is to be signed: {ask.lacks} signatures" for ask in asks)]

    def add(self, name: str, signatures: Mapping[bytes, bytes], now: int) -> bool:
        """Takes signatures of one part of the change; publishes it with the last one needed, and says so.

        On disk when this returns.

        Raises:
            NotFoundError: nothing of this name waits.
            TrustError: not by a key that counts, or it doesn't fit: the change is another by now.
            RefusedError: the online keys are not here.
        """
        asks = self.asks()
        known = keys_in(asks) | self._known()
        if name not in [ask.name for ask in asks]:
            raise NotFoundError(f"no change of {name[:60]!r} waits for signatures: heliograph key rotate begins one")
        asks = [
            replace(ask, signatures={**ask.signatures, **good_signatures(ask, known, signatures)})
            if ask.name == name
            else ask
            for ask in asks
        ]
        request.write(self._path, self._authority.realm, asks)
        if any(ask.lacks for ask in asks):
            return False
        files = {ask.name: (ask.metadata().signed.version, signed_file(ask)) for ask in asks}
        root = files.pop("root", None)
        self._authority.adopt(root[1] if root else None, files, now)
        self._path.unlink()
        return True

    def drop(self) -> bool:
        """Forgets the change that waits; whether there was one."""
        was = self._path.exists()
        self._path.unlink(missing_ok=True)
        return was

    # --- inside -----------------------------------------------------------------------------------------------------

    def _next_root(self, now: int) -> Root:
        root = load(Root, self._authority.set.root, "root").signed
        root.version += 1
        root.expires = ceremony.expires("root", now)
        return root

    def _next_targets(self, now: int) -> Targets:
        targets = load(Targets, self._authority.file("targets"), "targets").signed
        targets.version += 1
        targets.expires = ceremony.expires("targets", now)
        return targets

    def _require_known(self, role: str, brings_keys: bool) -> None:
        if staffing_of(role) is None:
            raise NotFoundError(f"no role {role[:60]!r}: heliograph key list shows them; of a model: sign-MODEL, …")
        if role not in self._authority.roles and not brings_keys:
            raise NotFoundError(f"role {role} has no keys yet: --add PUBLIC, once for each")
        if role not in self._authority.roles:
            check_name(role.partition("-")[2], "model")

    def _edit(
        self,
        signed: Root | Targets,
        role: str,
        add: Sequence[PublicKey],
        remove: Sequence[bytes],
        threshold: int | None,
    ) -> None:
        roles = signed.roles if isinstance(signed, Root) else delegations(signed)
        usual = staffing_of(role)
        assert usual is not None  # looked at by the caller
        if role not in roles:
            assert isinstance(signed, Targets)  # root's roles are always there
            ceremony.delegate(signed, role, [], usual.threshold, paths_of(role))
        held = roles[role]
        others = self._roles_of_keys(signed)
        for key in add:
            other = others.get(key.keyid.hex())
            if other is not None:
                raise RefusedError(f"key {key.keyid.hex()[:16]} is one of {other}: every role has its own keys")
            signed.add_key(key.tuf_key(), role)
        for keyid in remove:
            if keyid.hex() not in held.keyids:
                raise NotFoundError(f"key {keyid.hex()[:16]} is not one of the keys of {role}")
            signed.revoke_key(keyid.hex(), role)
        held.threshold = threshold or held.threshold
        if not 0 < held.threshold <= len(held.keyids):
            raise RefusedError(
                f"role {role} would have {len(held.keyids)} keys, {held.threshold} must sign: add keys, or --threshold"
            )
        if role in ONLINE_ROLES:
            keys = {bytes.fromhex(keyid): b"" for keyid in held.keyids}
            here = self._authority.keys.find(keys)
            if len(here) < held.threshold:
                raise ConfigError(
                    f"{len(here)} of the new keys of {role} are in {self._authority.keys.folder}, the hub needs "
                    f"{held.threshold}: heliograph key make {self._authority.keys.folder}/{role}-2.key first"
                )

    def _roles_of_keys(self, signed: Root | Targets) -> dict[str, str]:
        """Whose each key is, as published and as it is to be."""
        found = {
            keyid.hex(): role for role in self._authority.roles for keyid in self._authority.set.role_keys(role)[1]
        }
        roles = signed.roles if isinstance(signed, Root) else delegations(signed)
        return found | {keyid: name for name, role in roles.items() for keyid in role.keyids}

    def _all(self, root: Root | None, targets: Targets | None, again: Iterable[str], now: int) -> list[Ask]:
        """The whole change: what was edited, and what its keys have to sign again."""
        authority = self._authority
        held_root = load(Root, authority.set.root, "root").signed
        new_root = root or held_root
        if targets is None and not is_verified(
            new_root, "targets", load(Targets, authority.file("targets"), "targets")
        ):
            targets = self._next_targets(now)
        new_targets = targets or load(Targets, authority.file("targets"), "targets").signed
        asks = []
        if root is not None:
            groups = (_group(held_root, "root"), _group(root, "root"))
            asks.append(Ask("root", METADATA, "root", Metadata(root).to_bytes(), tuple(dict.fromkeys(groups)), {}))
        if targets is not None:
            content = Metadata(targets).to_bytes()
            asks.append(Ask("targets", METADATA, "targets", content, (_group(new_root, "targets"),), {}))
        for role, data in sorted(authority.set.delegated.items()):
            file = load(Targets, data, role)
            if role in again or not is_verified(new_targets, role, file):
                next_ = ceremony.make_duty(file.signed.version + 1, file.signed.targets, now)
                asks.append(Ask(role, METADATA, role, next_.to_bytes(), (_group(new_targets, role),), {}))
        return asks

    def _known(self) -> dict[bytes, bytes]:
        """The raw public keys of every role in force."""
        trusted = self._authority.set
        return {keyid: raw for role in self._authority.roles for keyid, raw in trusted.role_keys(role)[1].items()}

    def _is_stale(self, asks: Iterable[Ask]) -> bool:
        versions = self._authority.set.versions
        return any(ask.metadata().signed.version != versions.get(ask.name, 0) + 1 for ask in asks)


def _group(by: Root | Targets, role: str) -> Group:
    held = by.get_delegated_role(role)
    return Group(held.threshold, frozenset(bytes.fromhex(keyid) for keyid in held.keyids))
