"""Reads the structure of TIFF files: directories, tags, and the parts of the first page."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

TAG_WIDTH, TAG_LENGTH, TAG_BITS, TAG_COMPRESSION = 256, 257, 258, 259
TAG_SAMPLES, TAG_ROWS, TAG_PLANAR = 277, 278, 284
TAG_TILE_WIDTH, TAG_TILE_LENGTH, TAG_EXTRA = 322, 323, 338
TAG_OFFSETS, TAG_BYTE_COUNTS = (273, 324), (279, 325)

SIZE_TAGS = frozenset(
    {
        TAG_WIDTH, TAG_LENGTH, TAG_BITS, TAG_COMPRESSION, TAG_SAMPLES, TAG_ROWS, TAG_PLANAR,
        TAG_TILE_WIDTH, TAG_TILE_LENGTH, TAG_EXTRA, *TAG_OFFSETS, *TAG_BYTE_COUNTS,
    }
)  # fmt: skip
"""Tags that determine the size of a page."""

VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}  # fmt: skip
"""Bytes of a value, by its type."""

_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q", 17: "q", 18: "Q"}


@dataclass(frozen=True, slots=True)
class Tiff:
    """The number format of a TIFF: byte order, and whether it is a BigTIFF."""

    order: str
    big: bool

    @classmethod
    def of(cls, data: bytes) -> Tiff:
        """Read the number format from the first four bytes."""
        return cls("<" if data[:2] == b"II" else ">", big=data[2:4] in (b"+\0", b"\0+"))

    def first(self, data: bytes) -> int:
        """Return the offset of the first directory."""
        return self.number("Q", data, 8) if self.big else self.number("L", data, 4)

    def number(self, code: str, data: bytes, at: int) -> int:
        """Read one number; raises struct.error at the end of the file."""
        value: int = struct.unpack_from(self.order + code, data, at)[0]
        return value

    def directory(self, data: bytes, at: int) -> tuple[int, int, int]:
        """Return the number of tags, their offset, and the offset of the next directory."""
        tags = self.number("Q" if self.big else "H", data, at)
        first = at + (8 if self.big else 2)
        end = first + tags * self.tag_bytes
        return tags, first, self.number("Q" if self.big else "L", data, end)

    def tag(self, data: bytes, start: int) -> tuple[int, int, int]:
        """Return number, type and count of the tag at `start`."""
        count = self.number("Q" if self.big else "L", data, start + 4)
        return self.number("H", data, start), self.number("H", data, start + 2), count

    def values(self, data: bytes, start: int, kind: int, count: int) -> tuple[int, ...]:
        """Return the integers of the tag at `start`; empty for other types."""
        code = _NUMBERS.get(kind)
        if code is None:
            return ()
        pattern = f"{self.order}{count}{code}"
        at = start + (12 if self.big else 8)
        if struct.calcsize(pattern) > (8 if self.big else 4):
            at = self.number("Q" if self.big else "L", data, at)
        return struct.unpack_from(pattern, data, at)

    @property
    def tag_bytes(self) -> int:
        """Bytes of a tag."""
        return 20 if self.big else 12


@dataclass(frozen=True, slots=True)
class Page:
    """A page, by those of its tags that `SIZE_TAGS` names."""

    tags: dict[int, tuple[int, ...]]

    @classmethod
    def first(cls, data: bytes) -> Page:
        """Read the first page of a file; raises struct.error at its end."""
        tiff = Tiff.of(data)
        tags, first, _ = tiff.directory(data, tiff.first(data))
        found: dict[int, tuple[int, ...]] = {}
        for start in range(first, first + tags * tiff.tag_bytes, tiff.tag_bytes):
            tag, kind, count = tiff.tag(data, start)
            if tag in SIZE_TAGS:
                found[tag] = tiff.values(data, start, kind, count)
        return cls(found)

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first value of a tag."""
        return next(iter(self.tags.get(tag, ())), default)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.number(TAG_WIDTH), self.number(TAG_LENGTH)

    @property
    def compression(self) -> int:
        """Number of the compression; 1 is none."""
        return self.number(TAG_COMPRESSION, 1)

    @property
    def planar(self) -> bool:
        """Whether each band is stored separately."""
        return self.number(TAG_PLANAR, 1) == 2

    @property
    def part_size(self) -> tuple[int, int]:
        """Width and height of a strip or tile."""
        width, height = self.size
        if TAG_OFFSETS[0] in self.tags:
            return width, min(self.number(TAG_ROWS, height), height)
        return self.number(TAG_TILE_WIDTH), self.number(TAG_TILE_LENGTH)

    @property
    def bits(self) -> int:
        """Bits of a pixel, summed over all bands."""
        each = self.tags.get(TAG_BITS) or (1,)
        samples = self.number(TAG_SAMPLES, 1)
        return sum(each * samples if len(each) == 1 else each[:samples])

    @property
    def bits_of_plane(self) -> int:
        """Bits of a pixel in the narrowest band."""
        return min(self.tags.get(TAG_BITS) or (1,))

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets of the strips or tiles."""
        return self.tags.get(TAG_OFFSETS[0]) or self.tags.get(TAG_OFFSETS[1]) or ()

    def parts(self, end: int) -> Iterator[tuple[int, int]]:
        """Yield offset and bytes of each strip or tile, clipped to the file.

        If a size is missing, decoders use all bytes up to the end of the file.
        """
        sizes = self.tags.get(TAG_BYTE_COUNTS[0]) or self.tags.get(TAG_BYTE_COUNTS[1]) or ()
        for index, offset in enumerate(self.offsets):
            size = sizes[index] if index < len(sizes) else 0
            yield offset, max(0, min(size or end, end - offset))
