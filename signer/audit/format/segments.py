"""Segments: the files of the log, their headers and links, and reading records out of them.

``NNNNNNNNNNNNNNNN.log`` is named after its first record (16 digits). It begins
with a frame that is no record but the header, which continues the chain of the
segment before; the first record continues the header. Beside a closed segment
lies ``NNNNNNNNNNNNNNNN.index``: where each record is and its leaf hash. It is
derived, checked when it is read, and made anew where it is missing or wrong.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

from signer.audit.format.record import (
    HASH_SIZE,
    LENGTH_SIZE,
    MAX_BODY,
    NEWER,
    BrokenFrame,
    Frame,
    NewerFrame,
    Record,
    RecordError,
    TornTail,
    frame,
    parse_with_leaf,
    read_frames,
)
from signer.files import replace_file

_NAME = re.compile(r"([0-9]{16})\.log")
_FORMATS = re.compile(rb"signer audit log [0-9]{1,9}\n")
_MAGIC = b"signer audit log 1\n"
_HEADER = struct.Struct(f">{len(_MAGIC)}s{HASH_SIZE}sQ")  # then the origin, to the end
_PREVIOUS = slice(LENGTH_SIZE + len(_MAGIC), LENGTH_SIZE + len(_MAGIC) + HASH_SIZE)


class Segment(NamedTuple):
    """One file of the log; ``first`` is the sequence number of its first record."""

    path: Path
    first: int

    @classmethod
    def named(cls, directory: Path, first: int) -> Segment:
        return cls(directory / f"{first:016d}.log", first)

    @property
    def index_path(self) -> Path:
        return self.path.with_suffix(".index")


class Header(NamedTuple):
    """What a segment's first frame says: the log's name, and where the segment continues it."""

    origin: str
    first: int
    previous: bytes

    def frame(self) -> tuple[bytes, bytes]:
        """Returns the header's frame and the chain hash after it."""
        body = _HEADER.pack(_MAGIC, self.previous, self.first) + self.origin.encode()
        return frame(self.previous, body)


def list_segments(directory: Path) -> list[Segment]:
    """Returns the segments in a directory in their order; none where it does not exist."""
    if not directory.is_dir():
        return []
    found = ((path, _NAME.fullmatch(path.name)) for path in directory.iterdir())
    return sorted(
        (Segment(path, int(name[1])) for path, name in found if name), key=lambda item: item.first
    )


@contextmanager
def open_segment(segment: Segment) -> Iterator[tuple[Header, Iterator[Frame]]]:
    """Gives a segment's header and the frames of its records.

    Raises TornTail or BrokenFrame, also from the iterator, and OSError.
    """
    with (
        segment.path.open("rb") as file,
        _mapped(file.fileno(), segment) as data,
    ):
        frames = read_frames(data, data[_PREVIOUS])
        header = next(frames, None)
        if header is None:
            raise TornTail(0, "the segment is empty")
        yield _parse_header(header.body), frames


@contextmanager
def _mapped(descriptor: int, segment: Segment) -> Iterator[mmap | bytes]:
    if not segment.path.stat().st_size:
        yield b""
        return
    with mmap(descriptor, 0, access=ACCESS_READ) as data:
        yield data


def _parse_header(body: bytes) -> Header:
    try:
        magic, previous, first = _HEADER.unpack_from(body)
        origin = body[_HEADER.size :].decode()
    except (struct.error, UnicodeDecodeError):
        magic = b""
    if magic != _MAGIC and _FORMATS.match(body):
        raise NewerFrame(0, f"the segment {NEWER}")
    if magic != _MAGIC:
        raise BrokenFrame(0, "the segment begins with another header than ours")
    return Header(origin, first, previous)


class Index:
    """Where each record of one segment lies, and its leaf hash, in the order of the log."""

    _ENTRY = 8 + HASH_SIZE

    def __init__(self, entries: memoryview | None = None) -> None:
        """Begins an index that grows, or has these ``entries``: they can be 20 MB, so no copy."""
        self._grown = bytearray()
        self._entries = self._grown if entries is None else entries

    def __len__(self) -> int:
        return len(self._entries) // self._ENTRY

    def append(self, offset: int, leaf: bytes) -> None:
        self._grown += offset.to_bytes(8, "big") + leaf

    def offset(self, place: int) -> int:
        start = place * self._ENTRY
        return int.from_bytes(self._entries[start : start + 8], "big")

    def leaves(self, start: int, stop: int) -> list[bytes]:
        """Returns the leaf hashes of the records at the places [start, stop)."""
        entries = bytes(self._entries[start * self._ENTRY : stop * self._ENTRY])
        return [entries[at : at + HASH_SIZE] for at in range(8, len(entries), self._ENTRY)]

    def encode(self) -> bytes:
        """Returns the content of an index file: the entries and their SHA-256."""
        return bytes(self._entries) + sha256(self._entries).digest()

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Reads the content of an index file; raises ValueError where it is damaged."""
        view = memoryview(data)
        entries, checksum = view[:-HASH_SIZE], view[-HASH_SIZE:]
        if len(entries) % cls._ENTRY or sha256(entries).digest() != checksum:
            raise ValueError("the index is damaged")
        return cls(entries)

    @classmethod
    def of(cls, segment: Segment, records: int) -> Index:
        """Reads the index file of a closed segment of ``records``, or makes it from the segment.

        Raises RecordError where the segment itself is damaged, and OSError.
        """
        with suppress(OSError, ValueError):
            index = cls.decode(segment.index_path.read_bytes())
            if len(index) == records:
                return index
        index = cls.scan(segment)
        if len(index) != records:
            raise RecordError(f"{segment.path.name} does not hold {records} intact records")
        index.save(segment)
        return index

    @classmethod
    def scan(cls, segment: Segment) -> Index:
        """Makes the index from the segment, up to a torn tail; raises RecordError, OSError."""
        index = cls()
        with suppress(TornTail), open_segment(segment) as (_, frames):
            for one in frames:
                index.append(one.offset, parse_with_leaf(one.body)[1])
        return index

    def save(self, segment: Segment) -> None:
        """Writes the index file. Nothing is lost where that fails: it is only derived."""
        with suppress(OSError):
            replace_file(segment.index_path, self.encode())


class Reader:
    """Finds records by their sequence number.

    ``tail`` is the index of the last segment, which its writer keeps; without
    it the last segment is read once, up to a torn tail. Segments may be archived
    while it reads: then their records are absent. Raises RecordError.
    """

    def __init__(self, segments: Sequence[Segment], tail: Index | None = None) -> None:
        self._segments = tuple(segments)
        if tail is None:
            tail = Index.scan(self._segments[-1]) if segments else Index()
        self._tail = tail
        # An index takes up to 10 MB; what reads on stays in one or two segments.
        self._closed = lru_cache(maxsize=2)(Index.of)

    @property
    def first(self) -> int:
        """The number of the oldest record that is here; those before it were archived."""
        here = (segment.first for segment in self._segments if segment.path.exists())
        return next(here, self.size)

    @property
    def size(self) -> int:
        """How many records the log has."""
        return self._segments[-1].first + len(self._tail) if self._segments else 0

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """Yields the records [start, stop); raises RecordError, LookupError where one is absent."""
        for segment, index, begin, end in self._parts(start, stop):
            try:
                file = segment.path.open("rb")
            except FileNotFoundError:
                raise _archived(segment.first + begin) from None
            with file:
                for place in range(begin, end):
                    yield _read(file.fileno(), index.offset(place), segment.first + place)

    def leaf_hashes(self, start: int, stop: int) -> list[bytes]:
        """Returns the leaf hashes of the records [start, stop); raises as ``records``."""
        return [
            leaf
            for _, index, begin, end in self._parts(start, stop)
            for leaf in index.leaves(begin, end)
        ]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Segment, Index, int, int]]:
        """The segments that hold [start, stop), their indices, and the places in them."""
        firsts = [segment.first for segment in self._segments]
        while start < stop:
            number = bisect_right(firsts, start) - 1
            if number < 0:
                raise _archived(start)
            segment, index = self._segments[number], self._tail
            if number < len(firsts) - 1:
                try:
                    index = self._closed(segment, firsts[number + 1] - segment.first)
                except FileNotFoundError:
                    raise _archived(start) from None
            end = min(stop - segment.first, len(index))
            if end <= start - segment.first:
                raise LookupError(f"record {start} is not in the log")
            yield segment, index, start - segment.first, end
            start = segment.first + end


def _archived(seq: int) -> LookupError:
    return LookupError(f"record {seq} is not here: its segment was archived")


def _read(descriptor: int, offset: int, seq: int) -> Record:
    """Reads one record and checks that its frame continues the hash before it."""
    window = os.pread(descriptor, HASH_SIZE + LENGTH_SIZE, offset - HASH_SIZE)
    length = min(int.from_bytes(window[HASH_SIZE:], "big"), MAX_BODY)
    rest = os.pread(descriptor, length + HASH_SIZE, offset + LENGTH_SIZE)
    [one] = read_frames(window[HASH_SIZE:] + rest, window[:HASH_SIZE])
    record, _ = parse_with_leaf(one.body)
    if record.seq != seq:
        raise RecordError(f"record {record.seq} stands where record {seq} belongs")
    return record
