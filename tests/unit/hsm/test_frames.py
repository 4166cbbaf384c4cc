"""What passes between the front process and its workers: packed, and read with suspicion."""

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.algorithms import Algorithm
from signer.hsm.frames import (
    MAX_FRAME,
    Channel,
    Closed,
    FrameError,
    FrameKind,
    FrameReader,
    ResultFrame,
    ResultPart,
    SignFrame,
    SignPart,
    Verdict,
    pack_frame,
    pack_ids,
    pack_json,
    pack_result,
    pack_sign,
    unpack_ids,
    unpack_json,
    unpack_result,
    unpack_sign,
)
from signer.model import LARGEST_MESSAGE

SIGN_PARTS = st.builds(
    SignPart,
    algorithm=st.sampled_from(Algorithm),
    check_every=st.integers(1, 2**32 - 1),
    cka_id=st.binary(max_size=64),
    spki=st.binary(max_size=600),
    inputs=st.lists(st.binary(max_size=80), min_size=1, max_size=40)
    | st.integers(1, 64).flatmap(
        lambda width: st.lists(st.binary(min_size=width, max_size=width), min_size=1, max_size=40)
    ),
)
SIGN_FRAMES = st.builds(
    SignFrame, chunk=st.integers(0, 2**64 - 1), parts=st.lists(SIGN_PARTS, min_size=1, max_size=4)
)


@st.composite
def result_parts(draw: st.DrawFn) -> ResultPart:
    width, count = draw(st.integers(1, 512)), draw(st.integers(0, 30))
    wrong = draw(st.lists(st.integers(0, count - 1), unique=True)) if count else []
    blob = draw(st.binary(min_size=width * count, max_size=width * count))
    busy, checked = (draw(st.integers(0, top)) for top in (2**64 - 1, 2**32 - 1))
    return ResultPart(draw(st.sampled_from(Verdict)), busy, checked, width, tuple(wrong), blob)


RESULT_FRAMES = st.builds(
    ResultFrame,
    chunk=st.integers(0, 2**64 - 1),
    parts=st.lists(result_parts(), min_size=1, max_size=4),
)
SOME_PART = SignPart(Algorithm.ES256, 1, b"id", b"spki", [bytes(32)])


def packed_sign(frame: SignFrame) -> bytes:
    return b"".join(pack_sign(frame))


def packed_result(frame: ResultFrame) -> bytes:
    return b"".join(pack_result(frame))


@given(SIGN_FRAMES)
def test_a_chunk_survives_the_way(frame: SignFrame) -> None:
    assert unpack_sign(memoryview(packed_sign(frame))) == frame


@given(RESULT_FRAMES)
def test_a_result_survives_the_way(frame: ResultFrame) -> None:
    read = unpack_result(memoryview(packed_result(frame)))
    assert read == frame
    for part in read.parts:
        signatures = part.split()
        assert b"".join(signatures) == part.signatures
        assert all(len(signature) == part.width for signature in signatures)
        assert len(signatures) == part.items


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.SIGNED])
def test_a_refused_part_has_no_signatures(verdict: Verdict) -> None:
    frame = ResultFrame(7, [ResultPart(verdict, 0, 0, 0, (), b"")])
    [part] = unpack_result(memoryview(packed_result(frame))).parts
    assert (part.split(), part.items) == ([], 0)


@given(SIGN_FRAMES, st.data())
def test_a_shortened_or_lengthened_chunk_is_refused(frame: SignFrame, data: st.DataObject) -> None:
    body = packed_sign(frame)
    cut = data.draw(st.integers(0, len(body) - 1))
    for wrong in (body[:cut], body + b"\0"):
        with pytest.raises(FrameError):
            unpack_sign(memoryview(wrong))


@given(RESULT_FRAMES, st.data())
def test_a_shortened_or_lengthened_result_is_refused(
    frame: ResultFrame, data: st.DataObject
) -> None:
    body = packed_result(frame)
    cut = data.draw(st.integers(0, len(body) - 1))
    for wrong in (body[:cut], body + b"\0"):
        with pytest.raises(FrameError):
            unpack_result(memoryview(wrong))


@given(SIGN_FRAMES, RESULT_FRAMES, st.data())
def test_garbled_bytes_give_a_frame_or_frame_error(
    chunk: SignFrame, result: ResultFrame, data: st.DataObject
) -> None:
    cases: list[tuple[bytes, Callable[[memoryview], object]]] = [
        (packed_sign(chunk), unpack_sign),
        (packed_result(result), unpack_result),
    ]
    for body, unpack in cases:
        garbled = bytearray(body)
        for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=8)):
            garbled[at] = data.draw(st.integers(0, 255))
        try:
            frame = unpack(memoryview(bytes(garbled)))
        except FrameError:
            continue
        assert isinstance(frame, (SignFrame, ResultFrame))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_frame_or_frame_error(body: bytes) -> None:
    for unpack in (unpack_sign, unpack_result, unpack_json):
        try:
            assert unpack(memoryview(body)) is not None
        except FrameError:
            continue


def test_huge_counts_are_refused_before_memory_is_allocated() -> None:
    for width in (0, 1, 2**32 - 1):
        body = struct.pack("<QHBIIIHH", 1, 1, 0, 1, 2**32 - 1, width, 0, 0)
        with pytest.raises(FrameError):
            unpack_sign(memoryview(body))
    body = struct.pack("<QHBQIIHI", 1, 1, 0, 1, 1, 2**32 - 1, 2**16 - 1, 2**32 - 1)
    with pytest.raises(FrameError):
        unpack_result(memoryview(body))
    for unpack in (unpack_sign, unpack_result):
        with pytest.raises(FrameError):
            unpack(memoryview(struct.pack("<QH", 1, 2**16 - 1)))


@pytest.mark.parametrize("change", [{"check_every": 0}, {"inputs": []}])
def test_a_part_that_checks_or_signs_nothing_is_refused(change: Any) -> None:
    frame = SignFrame(1, [SOME_PART, SOME_PART._replace(**change)])
    with pytest.raises(FrameError):
        unpack_sign(memoryview(packed_sign(frame)))


def test_a_frame_without_parts_is_refused() -> None:
    with pytest.raises(FrameError):
        unpack_sign(memoryview(packed_sign(SignFrame(1, []))))
    with pytest.raises(FrameError):
        unpack_result(memoryview(packed_result(ResultFrame(1, []))))


@pytest.mark.parametrize("index", [3, 2**32 - 1])
def test_a_wrong_index_outside_the_part_is_refused(index: int) -> None:
    frame = ResultFrame(1, [ResultPart(Verdict.SIGNED, 5, 3, 2, (index,), bytes(6))])
    with pytest.raises(FrameError):
        unpack_result(memoryview(packed_result(frame)))


@pytest.mark.parametrize("body", [b"", b"[1]", b"7", b"\xff", b"{", b"[" * 100_000])
def test_a_control_message_is_one_json_object(body: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_json(memoryview(body))


@given(st.lists(st.binary(max_size=300)))
def test_ids_survive_the_way(ids: list[bytes]) -> None:
    assert unpack_ids(memoryview(pack_ids(ids))) == ids


@given(st.binary(min_size=1, max_size=300), st.data())
def test_ids_that_are_cut_short_are_refused(cka_id: bytes, data: st.DataObject) -> None:
    packed = pack_ids([cka_id])
    cut = data.draw(st.integers(1, len(packed) - 1))
    with pytest.raises(FrameError):
        unpack_ids(memoryview(packed[:cut]))


@pytest.fixture
def pair() -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs


def test_frames_keep_their_order_over_a_socket() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    sent = [(FrameKind.SIGN, bytes([n]) * n * 4000) for n in range(40)]

    def write() -> None:
        for kind, body in sent:
            theirs.send(kind, body[:10], body[10:])
        theirs.close()

    writer = threading.Thread(target=write)
    writer.start()
    received = [ours.receive() for _ in sent]
    with pytest.raises(Closed):
        ours.receive()
    writer.join()
    ours.close()
    assert [(kind, bytes(body)) for kind, body in received] == sent


def test_many_writers_do_not_mix_their_frames() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())

    def write(number: int) -> None:
        for _ in range(50):
            theirs.send(FrameKind.RESULT, bytes([number]) * 30_000)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    bodies = [bytes(ours.receive()[1]) for _ in range(200)]
    for writer in writers:
        writer.join()
    ours.close()
    theirs.close()
    assert all(len(set(body)) == 1 and len(body) == 30_000 for body in bodies)


def test_the_largest_message_fits_into_a_frame() -> None:
    part = SignPart(Algorithm.EDDSA, 1, bytes(64), bytes(600), [bytes(LARGEST_MESSAGE)])
    assert sum(map(len, pack_sign(SignFrame(1, [part])))) <= MAX_FRAME


@pytest.mark.parametrize(
    "head", [struct.pack("<IB", MAX_FRAME + 1, FrameKind.SIGN), struct.pack("<IB", 0, 200)]
)
def test_a_malformed_head_is_refused(pair: tuple[Channel, socket.socket], head: bytes) -> None:
    channel, other = pair
    other.sendall(head)
    with pytest.raises(FrameError):
        channel.receive()
    channel.close()
    other.close()


@pytest.mark.parametrize("sent", [b"", b"\x01", struct.pack("<IB", 9, FrameKind.SIGN) + b"short"])
def test_an_end_in_the_middle_is_an_end(pair: tuple[Channel, socket.socket], sent: bytes) -> None:
    channel, other = pair
    other.sendall(sent)
    other.close()
    with pytest.raises(Closed):
        channel.receive()
    channel.close()
    with pytest.raises(Closed):
        channel.send(FrameKind.SIGN, b"")


def test_the_end_wakes_a_reader_and_a_writer(pair: tuple[Channel, socket.socket]) -> None:
    channel, other = pair
    ended: list[str] = []

    def read() -> None:
        with pytest.raises(Closed):
            channel.receive()
        ended.append("reader")

    def write() -> None:
        with pytest.raises(Closed):
            channel.send(FrameKind.SIGN, bytes(MAX_FRAME))  # it blocks: nothing reads
        ended.append("writer")

    threads = [threading.Thread(target=read), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    other.recv(1)  # the writer is at work
    channel.close()
    for thread in threads:
        thread.join(10)
    other.close()
    assert sorted(ended) == ["reader", "writer"]


def test_control_messages_survive_the_way() -> None:
    value = {"kind": "died", "text": "ä", "number": 7}
    assert unpack_json(memoryview(pack_json(value))) == value


# --- a stream of bytes, cut into frames --------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from(FrameKind), st.binary(max_size=300)), max_size=12),
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
)
def test_frames_are_found_however_the_stream_is_cut(
    sent: list[tuple[FrameKind, bytes]], sizes: list[int]
) -> None:
    stream = b"".join(pack_frame(kind, body[:7], body[7:]) for kind, body in sent)
    found: list[tuple[FrameKind, bytes]] = []
    reader, at = FrameReader(), 0
    buffer = bytearray(400)  # used again, like the link's
    while at < len(stream):
        size = min(sizes[len(found) % len(sizes)], len(stream) - at)
        buffer[:size] = stream[at : at + size]
        found += [(kind, bytes(body)) for kind, body in reader.feed(memoryview(buffer)[:size])]
        at += size
    assert found == sent


@pytest.mark.parametrize(
    "head", [struct.pack("<IB", MAX_FRAME + 1, FrameKind.SIGN), struct.pack("<IB", 0, 200)]
)
def test_what_came_before_a_malformed_head_is_a_frame(head: bytes) -> None:
    stream = FrameReader().feed(memoryview(pack_frame(FrameKind.READY, b"all is well") + head))
    kind, body = next(stream)
    assert (kind, bytes(body)) == (FrameKind.READY, b"all is well")
    with pytest.raises(FrameError):
        next(stream)
