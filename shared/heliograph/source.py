"""[IO] Bytes of an open file at random access: as they lie there, or opened from a sealed blob leaf by leaf.

Whoever reads a base, a patch or a model reads a `Source` and needn't know how it lies there. Nothing here closes a
descriptor. Loaded where a patch is applied, which must not pay for opening what isn't sealed.
"""

import os
from dataclasses import dataclass, field
from io import BytesIO

from heliograph.errors import IntegrityError

RUN_BYTES = 64 * 4080
"""Plain bytes that are opened at once."""


@dataclass(frozen=True, slots=True)
class Source:
    """A blob in an open file.

    Attributes:
        fd: open for reading.
        start: where the blob begins in the file.
        key: leaf key of the sealed blob that lies there, a secret; empty: the plain bytes lie there.
        length: of the plain bytes; only a sealed blob needs it.
    """

    fd: int
    start: int = 0
    key: bytes = field(default=b"", repr=False)
    length: int = 0

    def read(self, offset: int, length: int) -> bytes:
        """`length` plain bytes from `offset`; memory is bounded by them and one run.

        Raises:
            IntegrityError: the blob ends before, or a leaf doesn't open.
        """
        if not self.key:
            return read_exactly(self.fd, self.start + offset, length)
        from heliograph.sealing import open_span

        out = BytesIO()  # gives up its bytes without a copy
        for at in range(offset, offset + length, RUN_BYTES):
            size = min(RUN_BYTES, offset + length - at)
            out.write(open_span(self.key, self.length, at, size, self._read_sealed))
        return out.getvalue()

    def _read_sealed(self, offset: int, length: int) -> bytes:
        return read_exactly(self.fd, self.start + offset, length)


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """`length` bytes of an open file from `offset`; the file position doesn't move.

    Raises:
        IntegrityError: the file ends before.
    """
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise IntegrityError(f"file ends at {offset + len(data)}, wanted {length} bytes from {offset}")
        data += more
    return data
