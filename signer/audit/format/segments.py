"""The files of the log: segments, their headers and links, and the frames in them.

``NNNNNNNNNNNNNNNN.log`` is named after its first record (16 digits). Its first frame is
the header, which continues the chain of the segment before; the first record continues
the header. A frame is a length, a body and the chain hash SHA-256(previous ‖ body).
"""

import os
import re
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple, NoReturn

from signer.audit.format.parse import NEWER
from signer.audit.format.record import (
    HASH_SIZE,
    LEAF_ITEMS,
    LENGTH_SIZE,
    MAX_BODY,
    RecordError,
    frame,
)

KEY_FILE = "audit.pub.pem"
"""The file of the public audit key, in the log's directory."""
CHECKPOINTS = "checkpoints"
"""The folder of checkpoints there: the newest, and one of every hour under its size."""
POLICIES = "policies"
"""The folder of all policies that were in force, each under its SHA-256."""

_NAME = re.compile(r"([0-9]{16})\.log")
VERSION = 2
"""The version of new segments. In version 1 each leaf of a column's tree had one item."""

_FORMATS = re.compile(rb"signer audit log [0-9]{1,9}\n")
_MAGICS = {version: f"signer audit log {version}\n".encode() for version in (1, VERSION)}
_MAGIC_SIZE = len(_MAGICS[VERSION])
_HEADER = struct.Struct(f">{_MAGIC_SIZE}s{HASH_SIZE}sQ")  # then the origin, to the end
_PREVIOUS = slice(LENGTH_SIZE + _MAGIC_SIZE, LENGTH_SIZE + _MAGIC_SIZE + HASH_SIZE)


class SegmentError(RecordError):
    """A segment cannot be read from ``offset`` on."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(text)
        self.offset = offset


class TornTail(SegmentError):  # recovery handles it
    """No intact frame follows ``offset``: an interrupted write leaves this."""


class BrokenFrame(SegmentError):  # the counterpart of TornTail
    """Intact frames follow the bytes at ``offset``: an interrupted write does not explain it."""


class NewerFrame(SegmentError):  # neither torn nor broken: it must not be cut
    """The frame at ``offset`` is intact, in a format that only a later version knows."""


class Segment(NamedTuple):
    """A file of the log; ``first`` is the sequence number of its first record."""

    path: Path
    first: int

    @classmethod
    def named(cls, directory: Path, first: int) -> "Segment":
        return cls(directory / f"{first:016d}.log", first)

    @property
    def index_path(self) -> Path:
        return self.path.with_suffix(".index")


class Header(NamedTuple):
    """The first frame of a segment: the log's name, the first record, the chain hash before."""

    origin: str
    first: int
    previous: bytes
    version: int = VERSION

    @property
    def leaf_items(self) -> int:
        """Items in a leaf of the trees of this segment's columns."""
        return LEAF_ITEMS if self.version > 1 else 1

    def frame(self) -> tuple[bytes, bytes]:
        """Returns the header's frame and the chain hash after it."""
        packed = _HEADER.pack(_MAGICS[self.version], self.previous, self.first)
        body = packed + self.origin.encode()
        return frame(self.previous, body)


def list_segments(directory: Path) -> list[Segment]:
    """Returns the segments in a directory in their order; none if it does not exist."""
    if not directory.is_dir():
        return []
    names = ((path, _NAME.fullmatch(path.name)) for path in directory.iterdir())
    segments = [Segment(path, int(name[1])) for path, name in names if name]
    return sorted(segments, key=lambda segment: segment.first)


@contextmanager
def open_segment(segment: Segment) -> "Iterator[tuple[Header, Iterator[Frame]]]":
    """Yields a segment's header and the frames of its records.

    Raises SegmentError, also from the iterator, and OSError.
    """
    with segment.path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise TornTail(0, "the segment is empty")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            frames = read_frames(data, data[_PREVIOUS])
            yield _parse_header(next(frames).body), frames


def _parse_header(body: bytes) -> Header:
    try:
        magic, previous, first = _HEADER.unpack_from(body)
        origin = body[_HEADER.size :].decode()
    except (struct.error, UnicodeDecodeError):
        magic = b""
    for version, known in _MAGICS.items():
        if magic == known:
            return Header(origin, first, previous, version)
    if _FORMATS.match(body):
        raise NewerFrame(0, f"the segment {NEWER}")
    raise BrokenFrame(0, "the segment does not begin with a header of an audit log")


class Frame(NamedTuple):
    """One record on disk: the offset of its frame, its body, and the chain hash after it."""

    offset: int
    body: bytes
    chain: bytes

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.offset + LENGTH_SIZE + len(self.body) + HASH_SIZE


def read_frames(
    data: bytes | memoryview | mmap, previous: bytes, offset: int = 0
) -> Generator[Frame, None, None]:
    """Yields the frames from ``offset`` on; ``previous`` is the chain hash before them.

    Bodies are not parsed. Raises TornTail or BrokenFrame at the first bytes that are not
    a frame of this chain.
    """
    size = len(data)
    while offset < size:
        frame_here = _frame_at(data, previous, offset)
        if frame_here is None:
            _refuse(data, offset)
        yield frame_here
        previous, offset = frame_here.chain, frame_here.end


def _frame_at(data: bytes | memoryview | mmap, previous: bytes, offset: int) -> Frame | None:
    """Returns the frame at ``offset``, or None if none there continues ``previous``."""
    begin = offset + LENGTH_SIZE
    length = int.from_bytes(data[offset:begin], "big")
    end = begin + length
    if not 0 < length <= MAX_BODY or end + HASH_SIZE > len(data):
        return None
    body, chain = bytes(data[begin:end]), bytes(data[end : end + HASH_SIZE])
    return Frame(offset, body, chain) if sha256(previous + body).digest() == chain else None


def _refuse(data: bytes | memoryview | mmap, offset: int) -> NoReturn:
    """Raises BrokenFrame if an intact frame follows, TornTail otherwise."""
    rest = bytes(data[offset:])
    budget = _SEARCH_BYTES
    # A frame can be checked by itself: it continues the hash before it.
    for candidate in _FRAME_BEGINNING.finditer(rest, HASH_SIZE):
        start = candidate.start()
        budget -= int.from_bytes(rest[start : start + LENGTH_SIZE], "big")
        if budget < 0 or _frame_at(rest, rest[start - HASH_SIZE : start], start) is not None:
            raise BrokenFrame(
                offset,
                f"the bytes at {offset} are not a frame of this chain, but frames follow them",
            )
    raise TornTail(offset, f"the bytes from {offset} to the end are not a frame of this chain")


_FRAME_BEGINNING = re.compile(rb"(?=[\x00][\x00-\x80]..\x82[\x58-\x5a])", re.DOTALL)
"""A length up to MAX_BODY, an array of two, a byte string as long as a head (24 or more)."""

_SEARCH_BYTES = 1 << 30
"""Bytes hashed in search of an intact frame; beyond, a break is assumed, which is stricter."""
