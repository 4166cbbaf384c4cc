"""The growing end of the log: frames are staged, then written and synced by one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from signer.audit.format.entries import Tip
from signer.audit.format.record import Column, Record, RecordError, RecordKind, Value, encode, frame
from signer.audit.format.segments import Header, Segment
from signer.audit.read.reader import Index
from signer.audit.write.disk import Disk, write_whole


class Tail:
    """The open segment and the ``tip`` that the next record continues. For one thread.

    An OSError out of ``commit`` or ``rotate`` leaves the file in a state that nobody
    knows: neither may be called again.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        origin: str,
        *,
        tip: Tip,
        segments: Sequence[Segment],
        index: Index,
    ) -> None:
        """Continues the last of ``segments`` with its ``index``, or begins the first one."""
        self._disk, self._directory, self._origin = disk, directory, origin
        self.tip = tip
        self.segments = tuple(segments)
        self.index = index
        self._staged: list[bytes] = []
        self._descriptor: int | None = None
        if self.segments:
            path = self.segments[-1].path
            self._end = path.stat().st_size
            self._descriptor = disk.open(path)
            # What was read here may never have been synced, nor the file's name: a
            # killed writer leaves both to the page cache. From now on they count.
            disk.sync(self._descriptor)
            disk.sync_directory(directory)
        else:
            self.rotate(0, None)
        self._begin = 0

    def due(self, segment_bytes: int) -> bool:
        """Whether the open segment is full; the snapshot that it begins with does not count."""
        return len(self.index) > 0 and self._end - self._begin >= segment_bytes

    def stage(
        self,
        time_us: int,
        kind: RecordKind,
        fields: Mapping[str, Value],
        column: Column | None = None,
        root: bytes | None = None,
    ) -> Record:
        """Puts a record behind all others; its time is not before theirs.

        Raises RecordError, and then nothing has happened.
        """
        tip = self.tip
        tip.check(kind, fields)
        record = Record(tip.size, max(time_us, tip.time_us), kind, fields, column)
        body, leaf = encode(record.seq, record.time_us, kind, fields, column, root=root)
        framed, tip.chain = frame(tip.chain, body)
        tip.add(record, leaf)
        self.index.append(self._end, leaf)
        self._staged.append(framed)
        self._end += len(framed)
        return record

    def commit(self) -> None:
        """Makes all that is staged durable; raises OSError."""
        if self._descriptor is None:
            raise OSError("the segment is closed")
        write_whole(self._disk, self._descriptor, b"".join(self._staged))
        self._staged.clear()
        self._disk.sync(self._descriptor)

    def rotate(self, time_us: int, snapshot: Mapping[str, Value] | None) -> None:
        """Begins the next segment, with a snapshot where there is one; raises OSError.

        Header and name are durable before any record, so a segment whose header is
        torn holds nothing that anybody was answered for.
        """
        self.close()
        if self.segments:
            self.index.save(self.segments[-1])
        segment = Segment.named(self._directory, self.tip.size)
        framed, self.tip.chain = Header(self._origin, segment.first, self.tip.chain).frame()
        self._descriptor = self._disk.create(segment.path)
        self._staged, self._end, self.index = [framed], len(framed), Index()
        self.segments = (*self.segments, segment)
        # A snapshot that no record can hold costs nothing but a slower start.
        with suppress(RecordError):
            if snapshot is not None:
                self.stage(time_us, RecordKind.SNAPSHOT, {**snapshot, **self.tip.snapshot()})
        self._begin = self._end
        self.commit()
        self._disk.sync_directory(self._directory)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Once, also where that fails: the number may be another file's by then.
            self._disk.close(descriptor)
