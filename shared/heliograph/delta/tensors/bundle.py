"""The members of tar and zip bundles that stand in them as they are: a compressed one has no place of its own."""

from collections.abc import Iterator

from heliograph.delta.tensors.table import MAX_NAME_BYTES, MAX_TENSORS, U16, U32, U64, OddError, View

Member = tuple[str, int, int]
"""Name, where its bytes begin, and how many there are."""

_BLOCK = 512
_FILES = (b"0", b"\0", b"7")
_END_BYTES, _MAX_COMMENT_BYTES = 22, 0xFFFF
_UNKNOWN = 0xFFFFFFFF


def tar_members(view: View) -> Iterator[Member]:
    """The files of a tar. Source: POSIX pax; GNU tar's manual for long names and large sizes.

    Raises:
        OddError: it is none, or damaged.
    """
    at, longer, size_by_pax = 0, "", -1
    while at + _BLOCK <= view.length:
        view.step()
        header = view.read(at, _BLOCK)
        if not any(header):
            return
        if header[257:262] != b"ustar":
            raise OddError
        size, kind = _tar_number(header[124:136]), header[156:157]
        at += _BLOCK
        if kind in (b"x", b"L"):
            view.check(at, size)
            text = view.read(at, min(size, 1 << 16))
            if kind == b"x":
                longer, size_by_pax = _pax(text)
            else:
                longer = _text(text)
        else:
            size = size_by_pax if size_by_pax >= 0 else size
            prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
            name = longer or (f"{prefix}/" if prefix else "") + _text(header[:100])
            if kind in _FILES:
                view.check(at, size)
                yield name, at, size
            longer, size_by_pax = "", -1
        at += -(-size // _BLOCK) * _BLOCK


def _pax(text: bytes) -> tuple[str, int]:
    """Path and size, where a pax header gives them: lines of `length key=value`."""
    name, size, at = "", -1, 0
    while at < len(text):
        digits, space, _ = text[at : at + 10].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits):
            raise OddError
        key, _, value = text[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise OddError
            size = int(value)
        at += int(digits)
    return name, size


def _tar_number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if any(digit not in b"01234567" for digit in digits):
        raise OddError
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0][:MAX_NAME_BYTES].decode(errors="backslashreplace")


def zip_members(view: View) -> Iterator[Member]:
    """The stored files of a zip, by its directory. Source: PKWARE's APPNOTE.TXT 6.3.9, 4.3 and 4.5.3.

    Raises:
        OddError: it is none, or damaged.
    """
    if view.read(0, 2) != b"PK":
        raise OddError
    start = max(0, view.length - _END_BYTES - _MAX_COMMENT_BYTES)
    tail = view.read(start, view.length - start)
    end = start + tail.rfind(b"PK\5\6")
    if end < start:
        raise OddError
    count, at = view.number(U16, end + 10), view.number(U32, end + 16)
    if (count == 0xFFFF or at == _UNKNOWN) and end >= 20 and view.read(end - 20, 4) == b"PK\6\7":
        large = view.number(U64, end - 12)
        count, at = view.number(U64, large + 32), view.number(U64, large + 48)
    if count > MAX_TENSORS:
        raise OddError
    for _ in range(count):
        view.step()
        if view.read(at, 4) != b"PK\1\2":
            raise OddError
        method, size, place = view.number(U16, at + 10), view.number(U32, at + 20), view.number(U32, at + 42)
        whole = view.number(U32, at + 24)
        name, extra, comment = (view.number(U16, at + where) for where in (28, 30, 32))
        if _UNKNOWN in (size, place, whole):
            size, place = _large(view, at + 46 + name, extra, whole, size, place)
        if method == 0 and view.number(U16, at + 8) & 1 == 0:
            yield view.name(at + 46, name), _stored(view, place, size), size
        at += 46 + name + extra + comment


def _stored(view: View, place: int, size: int) -> int:
    """Where a member's bytes begin."""
    if view.read(place, 4) != b"PK\3\4":
        raise OddError
    place += 30 + view.number(U16, place + 26) + view.number(U16, place + 28)
    view.check(place, size)
    return place


def _large(view: View, at: int, length: int, whole: int, size: int, place: int) -> tuple[int, int]:
    """Size and place of a member of more than 4 GB, or beyond 4 GB, from its extra fields."""
    end = at + length
    while at + 4 <= end:
        view.step()
        kind, size_bytes = view.number(U16, at), view.number(U16, at + 2)
        at += 4
        if kind == 1:
            values = [view.number(U64, at + where) for where in range(0, size_bytes - 7, 8)]
            given = iter(values)
            _, size, place = (next(given, _UNKNOWN) if known == _UNKNOWN else known for known in (whole, size, place))
        at += size_bytes
    return size, place
