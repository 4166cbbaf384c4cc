"""The frames that the front process and a worker exchange over a socket pair.

A frame is a length (u32), a kind (u8) and a body; numbers are little-endian. SIGN and
RESULT are packed columns, because they are on the hot path; the rest is small JSON.
Every length is checked before it is used: a broken worker must not break the front
process.
"""

import contextlib
import enum
import json
import socket
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from signer.algorithms import Algorithm

MAX_FRAME = 16 * 1024 * 1024
_HEAD = struct.Struct("<IB")
_SIGN = struct.Struct("<QBIIIHH")
_RESULT = struct.Struct("<QBQIIHI")
_ID = struct.Struct("<H")
_ALGORITHMS = tuple(Algorithm)


class FrameKind(enum.IntEnum):
    """What a frame is."""

    CONFIGURE = 1  # to the worker, JSON: which token, once at the start
    READY = 2  # from the worker, logged in: the digest of the keys that it found
    FATAL = 3  # from the worker, JSON: why it leaves
    SIGN = 4  # to the worker, packed
    RESULT = 5  # from the worker, packed
    REFRESH = 6  # to the worker, empty: look for new keys
    DROP = 7  # to the worker, packed: CKA_IDs whose session copies must go; empty: all copies
    ADMIN = 8  # to an administrative worker, JSON: an order (worker/administration.py)
    DONE = 9  # from an administrative worker, JSON: its answer


class FrameError(Exception):
    """The other side sent a malformed or unexpected frame."""


class Closed(Exception):
    """The other side has gone."""


class Channel:
    """Frames over a connected stream socket. One reader at a time; writers take turns."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._writing = threading.Lock()

    def send(self, kind: FrameKind, *parts: bytes) -> None:
        """Sends one frame; raises Closed where the other side has gone."""
        body = b"".join(parts)
        try:
            with self._writing:
                self._socket.sendall(_HEAD.pack(len(body), kind) + body)
        except OSError as error:
            raise Closed(str(error)) from error

    def receive(self) -> tuple[FrameKind, memoryview]:
        """Waits for one frame; raises Closed at the end, FrameError if it is malformed."""
        length, number = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > MAX_FRAME:
            raise FrameError(f"a frame of {length} bytes")
        try:
            kind = FrameKind(number)
        except ValueError as error:
            raise FrameError(f"a frame of unknown kind {number}") from error
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        filled = 0
        while filled < length:
            try:
                got = self._socket.recv_into(buffer[filled:])
            except OSError as error:
                raise Closed(str(error)) from error
            if not got:
                raise Closed("end of stream")
            filled += got
        return buffer

    def end(self) -> None:
        """Shuts the connection down: sending and receiving raise Closed, on both sides."""
        with contextlib.suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Shuts the connection down and closes the socket; for the side that reads."""
        self.end()
        with self._writing:  # a writer must not meet the descriptor number of another socket
            self._socket.close()


def pack_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def unpack_json(body: memoryview) -> dict[str, Any]:
    """Reads a small control message; raises FrameError."""
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise FrameError("a control message that is not JSON") from error
    if not isinstance(value, dict):
        raise FrameError("a control message that is not an object")
    return value


def pack_ids(ids: Iterable[bytes]) -> bytes:
    """Packs CKA_IDs, each after its length (u16)."""
    return b"".join(_ID.pack(len(cka_id)) + cka_id for cka_id in ids)


def unpack_ids(body: memoryview) -> list[bytes]:
    """Reads CKA_IDs; raises FrameError."""
    ids, at = [], 0
    while at < len(body):
        try:
            (length,) = _ID.unpack_from(body, at)
        except struct.error as error:
            raise FrameError("ids that are cut short") from error
        at += _ID.size + length
        if at > len(body):
            raise FrameError("ids that are cut short")
        ids.append(bytes(body[at - length : at]))
    return ids


@dataclass(frozen=True, slots=True)
class SignFrame:
    """A chunk to sign: ``inputs`` as in SignJob, of one key."""

    chunk: int
    algorithm: Algorithm
    check_every: int
    cka_id: bytes
    spki: bytes
    inputs: Sequence[bytes]


def pack_sign(frame: SignFrame) -> tuple[bytes, ...]:
    """Packs a chunk: header, CKA_ID, SPKI, lengths (none where all are equal), inputs."""
    inputs = frame.inputs
    widths = set(map(len, inputs))
    width = widths.pop() if len(widths) == 1 else 0
    header = _SIGN.pack(
        frame.chunk,
        _ALGORITHMS.index(frame.algorithm),
        frame.check_every,
        len(inputs),
        width,
        len(frame.cka_id),
        len(frame.spki),
    )
    lengths = b"" if width else struct.pack(f"<{len(inputs)}I", *map(len, inputs))
    return header, frame.cka_id, frame.spki, lengths, b"".join(inputs)


def unpack_sign(body: memoryview) -> SignFrame:
    """Reads a chunk; raises FrameError."""
    try:
        chunk, algorithm, check_every, count, width, id_length, spki_length = _SIGN.unpack_from(
            body
        )
        at = _SIGN.size
        cka_id = bytes(body[at : at + id_length])
        at += id_length
        spki = bytes(body[at : at + spki_length])
        at += spki_length
        if width:
            if at + width * count != len(body):  # before ``count`` items are allocated
                raise FrameError("a chunk whose lengths do not add up")
            lengths: Sequence[int] = (width,) * count
        else:
            lengths = struct.unpack_from(f"<{count}I", body, at)
            at += 4 * count
        name = _ALGORITHMS[algorithm]
    except (struct.error, IndexError) as error:
        raise FrameError("a chunk that is cut short") from error
    if at + sum(lengths) != len(body) or not check_every:
        raise FrameError("a chunk whose lengths do not add up")
    inputs = []
    for length in lengths:
        inputs.append(bytes(body[at : at + length]))
        at += length
    return SignFrame(chunk, name, check_every, cka_id, spki, inputs)


class Verdict(enum.IntEnum):
    """How a chunk went as a whole."""

    SIGNED = 0  # every item has its signature, except those in ``wrong``
    NO_KEY = 1  # the token has no such private key
    REFUSED = 2  # the module refuses this key or mechanism
    UNSUITABLE = 3  # the pinned public key does not fit the algorithm


class ResultFrame(NamedTuple):
    """A chunk's signatures: ``width`` bytes each, zeros at the indexes in ``wrong``.

    ``busy_us``: how long the chunk took in the worker, in microseconds. ``checked``: how
    many signatures were verified with the pinned public key.
    """

    chunk: int
    verdict: Verdict
    busy_us: int
    checked: int
    width: int
    wrong: Sequence[int]
    signatures: memoryview

    def split(self) -> list[bytes]:
        """Returns the signatures one by one; none where the chunk was not signed."""
        blob, width = bytes(self.signatures), self.width
        return [blob[at : at + width] for at in range(0, len(blob), width or 1)]


def pack_result(result: ResultFrame) -> tuple[bytes, ...]:
    """Packs a chunk's signatures."""
    count = len(result.signatures) // result.width if result.width else 0
    header = _RESULT.pack(
        result.chunk,
        result.verdict,
        result.busy_us,
        result.checked,
        count,
        result.width,
        len(result.wrong),
    )
    return header, struct.pack(f"<{len(result.wrong)}I", *result.wrong), bytes(result.signatures)


def unpack_result(body: memoryview) -> ResultFrame:
    """Reads a chunk's signatures; raises FrameError."""
    try:
        chunk, verdict, busy_us, checked, count, width, wrong_count = _RESULT.unpack_from(body)
        wrong = struct.unpack_from(f"<{wrong_count}I", body, _RESULT.size)
        verdict = Verdict(verdict)
    except (struct.error, ValueError) as error:
        raise FrameError("a result that is cut short") from error
    signatures = body[_RESULT.size + 4 * wrong_count :]
    if len(signatures) != count * width or any(index >= count for index in wrong):
        raise FrameError("a result whose lengths do not add up")
    return ResultFrame(chunk, verdict, busy_us, checked, width, wrong, signatures)
