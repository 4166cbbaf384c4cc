"""The frames that the front process and a worker exchange over a socket pair.

A frame is a length (u32), a kind (u8) and a body; numbers are little-endian. SIGN and
RESULT are packed columns, because they are on the hot path; the rest is small JSON.
A chunk has parts, one for each key that signs in it: it may carry the items of many calls.
Every length is checked before it is used: a broken worker must not break the front
process.
"""

import contextlib
import enum
import json
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from signer.algorithms import Algorithm
from signer.model import WrapMechanism, WrappedKey, wrapping_cka_id

MAX_FRAME = 16 * 1024 * 1024
_HEAD = struct.Struct("<IB")
_CHUNK = struct.Struct("<QH")
_SIGN = struct.Struct("<BIIIHHH")
_WRAPPED = struct.Struct("<B16s32s")
_RESULT = struct.Struct("<BQIIHI")
PART_BYTES = _SIGN.size  # of a part to sign, beside its ids, keys and inputs
_ID = struct.Struct("<H")
_ALGORITHMS = tuple(Algorithm)
_NUMBERS = {algorithm: number for number, algorithm in enumerate(_ALGORITHMS)}
_WRAP_MECHANISMS = tuple(WrapMechanism)


class FrameKind(enum.IntEnum):
    """What a frame is."""

    CONFIGURE = 1  # to the worker, JSON: which token, once at the start
    READY = 2  # from the worker, logged in: the digest of all keys, empty without an index
    FATAL = 3  # from the worker, JSON: why it leaves
    SIGN = 4  # to the worker, packed
    RESULT = 5  # from the worker, packed
    KEYS = 6  # to the worker, packed: CKA_IDs of keys that were created or destroyed
    DROP = 7  # to the worker, packed: CKA_IDs whose copies and unwrapped keys must go
    ADMIN = 8  # to an administrative worker, JSON: an order (worker/administration.py)
    DONE = 9  # from an administrative worker, JSON: its answer
    LOGIN = 10  # from the worker: empty before C_Login, LOGGED_IN when it has succeeded


LOGGED_IN = b"ok"


class FrameError(Exception):
    """The other side sent a malformed or unexpected frame."""


class Closed(Exception):
    """The other side has gone."""


def _head(data: bytes | memoryview, at: int = 0) -> tuple[int, FrameKind]:
    """Reads the head of a frame: the length of its body, and its kind. Raises FrameError."""
    length, number = _HEAD.unpack_from(data, at)
    if length > MAX_FRAME:
        raise FrameError(f"a frame of {length} bytes")
    try:
        return length, FrameKind(number)
    except ValueError as error:
        raise FrameError(f"a frame of unknown kind {number}") from error


def pack_frame(kind: FrameKind, *parts: bytes) -> bytes:
    """Returns a whole frame with a body of these parts."""
    return b"".join((_HEAD.pack(sum(map(len, parts)), kind), *parts))


class FrameReader:
    """Cuts what comes from a socket into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of a frame that is not complete
        self._wanted = 0  # bytes that it must have before it is looked at again

    def feed(self, data: memoryview) -> Iterator[tuple[FrameKind, memoryview]]:
        """Yields the frames that are complete with these bytes; raises FrameError.

        A body is valid until ``data`` is overwritten. Take all frames before more is fed.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data, self._rest = memoryview(self._rest), bytearray()
        at, size = 0, len(data)
        self._wanted = _HEAD.size
        while size - at >= _HEAD.size:
            length, kind = _head(data, at)
            end = at + _HEAD.size + length
            if end > size:
                self._wanted = end - at
                break
            yield kind, data[at + _HEAD.size : end]
            at = end
        self._rest += data[at:]


class Channel:
    """Frames over a connected stream socket. One reader at a time; writers take turns.

    It blocks: the event loop uses the socket itself (front/slot.py).
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._writing = threading.Lock()

    def send(self, kind: FrameKind, *parts: bytes) -> None:
        """Sends one frame; raises Closed if the other side has gone."""
        frame = pack_frame(kind, *parts)
        try:
            with self._writing:
                self.socket.sendall(frame)
        except OSError as error:
            raise Closed(str(error)) from error

    def receive(self) -> tuple[FrameKind, memoryview]:
        """Waits for one frame; raises Closed at the end, FrameError if it is malformed."""
        length, kind = _head(self._exactly(_HEAD.size))
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        filled = 0
        while filled < length:
            try:
                got = self.socket.recv_into(buffer[filled:])
            except OSError as error:
                raise Closed(str(error)) from error
            if not got:
                raise Closed("end of stream")
            filled += got
        return buffer

    def end(self) -> None:
        """Shuts the connection down: sending and receiving raise Closed, on both sides."""
        with contextlib.suppress(OSError):  # it is closed already
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Shuts the connection down and closes the socket; for the side that reads."""
        self.end()
        with self._writing:  # a writer must not meet the descriptor number of another socket
            self.socket.close()


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


def pack_wrapped(wrapped: WrappedKey | None) -> bytes:
    """Packs a wrapped key for a part of a chunk; empty for a key on the token."""
    if wrapped is None:
        return b""
    number = _WRAP_MECHANISMS.index(wrapped.mechanism)
    head = _WRAPPED.pack(number, wrapping_cka_id(wrapped.wrapping_key), wrapped.sha256)
    return head + wrapped.blob


def wrapped_bytes(wrapped: WrappedKey | None) -> int:
    """Returns the size of what ``pack_wrapped`` returns."""
    return 0 if wrapped is None else _WRAPPED.size + len(wrapped.blob)


class PackedWrapped(NamedTuple):
    """A wrapped key as a worker reads it; ``wrapping_key`` is the CKA_ID of its wrapping key."""

    mechanism: WrapMechanism
    wrapping_key: bytes
    sha256: bytes
    blob: bytes


def unpack_wrapped(packed: bytes) -> PackedWrapped:
    """Reads what ``pack_wrapped`` wrote; raises FrameError."""
    try:
        number, wrapping_key, sha256 = _WRAPPED.unpack_from(packed)
        mechanism = _WRAP_MECHANISMS[number]
    except (struct.error, IndexError) as error:
        raise FrameError("a wrapped key that cannot be read") from error
    return PackedWrapped(mechanism, wrapping_key, sha256, packed[_WRAPPED.size :])


class SignPart(NamedTuple):
    """What one key signs in a chunk; ``inputs`` and ``check_every`` as in SignJob.

    ``wrapped`` is the key itself, see ``pack_wrapped``, or empty where it is on the token.
    """

    algorithm: Algorithm
    check_every: int
    cka_id: bytes
    spki: bytes
    inputs: Sequence[bytes]
    wrapped: bytes = b""


class SignFrame(NamedTuple):
    """A chunk to sign: its parts in order."""

    chunk: int
    parts: Sequence[SignPart]


def pack_sign(frame: SignFrame) -> list[bytes]:
    """Packs a chunk: number, count of parts, parts.

    A part: header, CKA_ID, SPKI, wrapped key, lengths (none if all are equal), inputs.
    """
    packed = [_CHUNK.pack(frame.chunk, len(frame.parts))]
    for algorithm, check_every, cka_id, spki, inputs, wrapped in frame.parts:
        count = len(inputs)
        widths = set(map(len, inputs))
        width = widths.pop() if len(widths) == 1 else 0
        lengths = len(cka_id), len(spki), len(wrapped)
        header = _SIGN.pack(_NUMBERS[algorithm], check_every, count, width, *lengths)
        packed += (header, cka_id, spki, wrapped)
        if not width:
            packed.append(struct.pack(f"<{count}I", *map(len, inputs)))
        packed += inputs
    return packed


def unpack_sign(body: memoryview) -> SignFrame:
    """Reads a chunk; raises FrameError."""
    parts = []
    try:
        chunk, count = _CHUNK.unpack_from(body)
        at = _CHUNK.size
        for _ in range(count):
            part, at = _unpack_part(body, at)
            parts.append(part)
    except (struct.error, IndexError) as error:
        raise FrameError("a chunk that is cut short") from error
    if at != len(body) or not parts:
        raise FrameError("a chunk whose lengths do not add up")
    return SignFrame(chunk, parts)


def _unpack_part(body: memoryview, at: int) -> tuple[SignPart, int]:
    """Reads the part that begins at ``at``; returns it and where it ends."""
    algorithm, check_every, count, width, *key_lengths = _SIGN.unpack_from(body, at)
    at += _SIGN.size
    of_key = []
    for length in key_lengths:
        of_key.append(bytes(body[at : at + length]))
        at += length
    cka_id, spki, wrapped = of_key
    if width:
        if width * count > len(body) - at:  # before ``count`` items are allocated
            raise FrameError("a chunk whose lengths do not add up")
        lengths: Sequence[int] = (width,) * count
    else:
        lengths = struct.unpack_from(f"<{count}I", body, at)
        at += 4 * count
    if sum(lengths) > len(body) - at or not check_every or not count:
        raise FrameError("a chunk whose lengths do not add up")
    inputs = []
    for length in lengths:
        inputs.append(bytes(body[at : at + length]))
        at += length
    part = SignPart(_ALGORITHMS[algorithm], check_every, cka_id, spki, inputs, wrapped)
    return part, at


class Verdict(enum.IntEnum):
    """How a part of a chunk went as a whole."""

    SIGNED = 0  # every item has its signature, except those in ``wrong``
    NO_KEY = 1  # the token has no private key of this id
    REFUSED = 2  # the module refuses this key or mechanism
    UNSUITABLE = 3  # the pinned public key does not fit the algorithm
    AMBIGUOUS = 4  # the token has two private keys of this id
    NO_WRAPPING_KEY = 5  # the token does not hold, once, the key that wraps this one
    NOT_UNWRAPPED = 6  # the wrapped key was changed, or another key has wrapped it


class ResultPart(NamedTuple):
    """A part's signatures: ``width`` bytes each, zeros at the indexes in ``wrong``.

    ``busy_us``: how long the part took in the worker, in microseconds, with the search for its
    key or its unwrapping. ``checked``: how many signatures were verified with the pinned public
    key.
    """

    verdict: Verdict
    busy_us: int
    checked: int
    width: int
    wrong: Sequence[int]
    signatures: bytes

    @property
    def items(self) -> int:
        """How many signatures it has; 0 if the part was not signed."""
        return len(self.signatures) // self.width if self.width else 0

    def split(self) -> list[bytes]:
        """Returns the signatures one by one; none if the part was not signed."""
        blob, width = self.signatures, self.width
        return [blob[at : at + width] for at in range(0, len(blob), width or 1)]


class ResultFrame(NamedTuple):
    """What became of a chunk: a result for each of its parts, in their order."""

    chunk: int
    parts: Sequence[ResultPart]


def pack_result(frame: ResultFrame) -> list[bytes]:
    """Packs a chunk's signatures: number, count of parts, parts."""
    packed = [_CHUNK.pack(frame.chunk, len(frame.parts))]
    for part in frame.parts:
        wrong = part.wrong
        header = _RESULT.pack(
            part.verdict, part.busy_us, part.checked, part.items, part.width, len(wrong)
        )
        packed += (header, struct.pack(f"<{len(wrong)}I", *wrong), part.signatures)
    return packed


def unpack_result(body: memoryview) -> ResultFrame:
    """Reads a chunk's signatures; raises FrameError."""
    parts = []
    try:
        chunk, parts_count = _CHUNK.unpack_from(body)
        at = _CHUNK.size
        for _ in range(parts_count):
            verdict, busy_us, checked, count, width, wrong_count = _RESULT.unpack_from(body, at)
            at += _RESULT.size
            wrong: Sequence[int] = ()
            if wrong_count:
                wrong = struct.unpack_from(f"<{wrong_count}I", body, at)
                at += 4 * wrong_count
            end = at + count * width
            if end > len(body) or (wrong and max(wrong) >= count) or (count and not width):
                raise FrameError("a result whose lengths do not add up")
            signatures = bytes(body[at:end])
            parts.append(ResultPart(Verdict(verdict), busy_us, checked, width, wrong, signatures))
            at = end
    except (struct.error, ValueError) as error:
        raise FrameError("a result that is cut short") from error
    if at != len(body) or not parts:
        raise FrameError("a result whose lengths do not add up")
    return ResultFrame(chunk, parts)
