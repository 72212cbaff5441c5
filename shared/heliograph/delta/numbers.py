"""Numbers of seven bits a byte, the lowest first, the eighth bit set if more follow; pure."""

from heliograph.errors import IntegrityError


def put(out: bytearray, value: int) -> None:
    """Appends a number, 0 or more."""
    while value >= 128:
        out.append(128 | (value & 127))
        value >>= 7
    out.append(value)


class Numbers:
    """Reads numbers, and bytes between them, each within the caller's bounds.

    Attributes:
        at: how many bytes were read.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def number(self, what: str, low: int, high: int) -> int:
        """A number from `low` to `high`, which is below 2^56.

        Raises:
            IntegrityError: it is out of bounds, or cut off.
        """
        value = shift = 0
        while self.at < len(self._data) and shift < 56:
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if not low <= value <= high:
                    raise IntegrityError(f"{what}: {value} is not from {low} to {high}")
                return value
            shift += 7
        raise IntegrityError(f"{what}: a number is cut off or too large")

    def data(self, what: str, length: int) -> bytes:
        """So many bytes.

        Raises:
            IntegrityError: there are fewer.
        """
        out = self._data[self.at : self.at + length]
        if len(out) != length:
            raise IntegrityError(f"{what}: {len(out)} bytes are left, expected {length}")
        self.at += length
        return out

    def finish(self) -> None:
        """Raises IntegrityError if anything is left."""
        if self.at != len(self._data):
            raise IntegrityError(f"{len(self._data) - self.at} bytes follow the end")
