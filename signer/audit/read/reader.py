"""Reads records by their sequence number, with an index of each segment.

``NNNNNNNNNNNNNNNN.index`` beside a closed segment holds the offset and the leaf hash of
each record. It is derived: checked when it is read, and made again if it is missing or
damaged.
"""

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256

from signer.audit.format.parse import parse_with_leaf
from signer.audit.format.record import HASH_SIZE, LENGTH_SIZE, MAX_BODY, Record, RecordError
from signer.audit.format.segments import Segment, TornTail, open_segment, read_frames
from signer.files import replace_file

INDEX_ENTRY = struct.Struct(f">Q{HASH_SIZE}s")
"""The offset of a record's frame and the record's leaf hash."""


class Index:
    """The ``INDEX_ENTRY`` of each record of one segment; ``grown`` is appended to."""

    def __init__(self, entries: memoryview | None = None) -> None:
        """Starts empty, or holds these ``entries``: up to 20 MB, so they are not copied."""
        self.grown = bytearray()
        self._entries = self.grown if entries is None else entries

    def __len__(self) -> int:
        return len(self._entries) // INDEX_ENTRY.size

    def append(self, offset: int, leaf: bytes) -> None:
        self.grown += INDEX_ENTRY.pack(offset, leaf)

    def offset(self, position: int) -> int:
        """Returns the offset of the frame of one record; the first has position 0."""
        start = position * INDEX_ENTRY.size
        return int.from_bytes(self._entries[start : start + 8], "big")

    def leaves(self, start: int, stop: int) -> list[bytes]:
        """Returns the leaf hashes of the records at the positions [start, stop)."""
        entries = bytes(self._entries[start * INDEX_ENTRY.size : stop * INDEX_ENTRY.size])
        return [leaf for _, leaf in INDEX_ENTRY.iter_unpack(entries)]

    @classmethod
    def decode(cls, data: bytes) -> "Index":
        """Reads an index file, the entries and their SHA-256; raises ValueError if damaged."""
        view = memoryview(data)
        entries, checksum = view[:-HASH_SIZE], view[-HASH_SIZE:]
        if len(entries) % INDEX_ENTRY.size or sha256(entries).digest() != checksum:
            raise ValueError("the index is damaged")
        return cls(entries)

    @classmethod
    def of(cls, segment: Segment, records: int) -> "Index":
        """Reads the index file of a closed segment of ``records``, or makes it from the segment.

        Raises RecordError if the segment itself is damaged, and OSError.
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
    def scan(cls, segment: Segment) -> "Index":
        """Makes the index from the segment, up to a torn tail; raises RecordError, OSError."""
        index = cls()
        with suppress(TornTail), open_segment(segment) as (_, frames):
            for frame in frames:
                index.append(frame.offset, parse_with_leaf(frame.body)[1])
        return index

    def save(self, segment: Segment) -> None:
        """Writes the index file; ignores an OSError, because the index can be made again."""
        with suppress(OSError):
            checksum = sha256(self._entries).digest()
            replace_file(segment.index_path, bytes(self._entries) + checksum)


class Reader:
    """Reads records from the segments of a log.

    ``tail`` is the index of the last segment, which its writer keeps; without it the last
    segment is read once, up to a torn tail. Segments may be archived at the same time:
    then their records are missing. Raises RecordError.
    """

    def __init__(self, segments: Sequence[Segment], tail: Index | None = None) -> None:
        self._segments = tuple(segments)
        if tail is None:
            tail = Index.scan(self._segments[-1]) if segments else Index()
        self._tail = tail
        # An index takes up to 20 MB; sequential reading stays in one or two segments.
        self._closed = lru_cache(maxsize=2)(Index.of)

    @property
    def first(self) -> int:
        """The number of the oldest record in the directory; older ones were archived."""
        present = (segment.first for segment in self._segments if segment.path.exists())
        return next(present, self.size)

    @property
    def size(self) -> int:
        """How many records the log has."""
        return self._segments[-1].first + len(self._tail) if self._segments else 0

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """Yields the records [start, stop); raises RecordError, LookupError if one is missing."""
        for segment, index, begin, end in self._parts(start, stop):
            try:
                file = segment.path.open("rb")
            except FileNotFoundError:
                raise _archived(segment.first + begin) from None
            with file:
                for position in range(begin, end):
                    yield _read(file.fileno(), index.offset(position), segment.first + position)

    def record(self, seq: int) -> Record:
        """Returns one record; raises as ``records``."""
        return next(self.records(seq, seq + 1))

    def leaf_hashes(self, start: int, stop: int) -> list[bytes]:
        """Returns the leaf hashes of the records [start, stop); raises as ``records``."""
        return [
            leaf
            for _, index, begin, end in self._parts(start, stop)
            for leaf in index.leaves(begin, end)
        ]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Segment, Index, int, int]]:
        """Yields each segment of [start, stop) with its index and the positions in it."""
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
    return LookupError(f"record {seq} is not in this directory: its segment was archived")


def _read(descriptor: int, offset: int, seq: int) -> Record:
    """Reads one record and checks that its frame continues the chain hash before it."""
    window = os.pread(descriptor, HASH_SIZE + LENGTH_SIZE, offset - HASH_SIZE)
    length = min(int.from_bytes(window[HASH_SIZE:], "big"), MAX_BODY)
    rest = os.pread(descriptor, length + HASH_SIZE, offset + LENGTH_SIZE)
    [frame] = read_frames(window[HASH_SIZE:] + rest, window[:HASH_SIZE])
    record, _ = parse_with_leaf(frame.body)
    if record.seq != seq:
        raise RecordError(f"record {record.seq} is in the position of record {seq}")
    return record
