"""Frames over a socket on the event loop: nothing waits, nothing is lost or mixed."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from signer.event_loop import EventLoop
from signer.hsm.frames import Channel, FrameError, FrameKind, pack_frame
from signer.hsm.front.slot import READ_BYTES, Link
from tests.daemon import until

BIG = 3 * 1024 * 1024  # more than a socket buffer holds


class Owner:
    """Remembers what a link reports."""

    def __init__(self) -> None:
        self.frames: list[tuple[FrameKind, bytes]] = []
        self.ends: list[str] = []
        self.link: Link | None = None
        self.refuses = False

    def frame(self, kind: FrameKind, body: memoryview) -> None:
        if self.refuses:
            raise FrameError("not like this")
        self.frames.append((kind, bytes(body)))

    def ended(self, error: FrameError | None) -> None:
        self.ends.append(str(error or "gone"))
        assert self.link is not None
        self.link.close()


class Linked:
    """A link on a loop, and the worker's side of it as a blocking channel."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.owner = Owner()
        self.ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(20)
        self.worker = Channel(self.theirs)
        self.link = self.owner.link = loop.call(Link, loop.loop, self.ours, self.owner)

    def send(self, kind: FrameKind, *parts: bytes) -> bool:
        return self.loop.call(self.link.send, kind, *parts)

    def close(self) -> None:
        self.loop.call(self.link.close)
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def linked(loop: EventLoop) -> Iterator[Linked]:
    made = Linked(loop)
    yield made
    made.close()


def test_frames_go_both_ways_in_their_order(linked: Linked) -> None:
    sent = [(FrameKind.SIGN, bytes([n]) * n * 300) for n in range(50)]
    for kind, body in sent:
        assert linked.send(kind, body[:9], body[9:])
    assert [(kind, bytes(body)) for kind, body in (linked.worker.receive() for _ in sent)] == sent
    for kind, body in sent:
        linked.worker.send(kind, body)
    until(lambda: len(linked.owner.frames) == len(sent))
    assert linked.owner.frames == sent


def test_what_the_socket_does_not_take_is_written_later_and_nothing_waits(linked: Linked) -> None:
    big, small = bytes(range(256)) * (BIG // 256), b"after it"
    before = time.monotonic()
    assert linked.send(FrameKind.SIGN, big)
    assert linked.send(FrameKind.KEYS)
    assert linked.send(FrameKind.DROP, small)
    assert time.monotonic() - before < 5, "nobody reads, and nobody waits"
    received = [linked.worker.receive() for _ in range(3)]
    assert [(kind, bytes(body)) for kind, body in received] == [
        (FrameKind.SIGN, big),
        (FrameKind.KEYS, b""),
        (FrameKind.DROP, small),
    ]
    assert linked.send(FrameKind.DROP, b"directly again")
    assert bytes(linked.worker.receive()[1]) == b"directly again"


def test_frames_that_come_in_pieces_are_joined(linked: Linked) -> None:
    body = bytes(range(256)) * 40
    stream = pack_frame(FrameKind.RESULT, body) + pack_frame(FrameKind.READY)
    for at in range(0, len(stream), 997):
        linked.theirs.sendall(stream[at : at + 997])
        time.sleep(0.002)
    until(lambda: len(linked.owner.frames) == 2)
    assert linked.owner.frames == [(FrameKind.RESULT, body), (FrameKind.READY, b"")]


def test_a_frame_above_what_is_read_at_once_is_whole(linked: Linked) -> None:
    body = bytes(range(256)) * (BIG // 256)
    assert len(body) > READ_BYTES
    writer = threading.Thread(target=linked.worker.send, args=(FrameKind.RESULT, body))
    writer.start()
    until(lambda: linked.owner.frames)
    writer.join()
    assert linked.owner.frames == [(FrameKind.RESULT, body)]


def test_the_end_is_reported_once_and_nothing_is_taken_after_it(linked: Linked) -> None:
    linked.worker.send(FrameKind.READY, b"last words")
    linked.theirs.close()
    until(lambda: linked.owner.ends)
    assert linked.owner.frames == [(FrameKind.READY, b"last words")]
    assert linked.owner.ends == ["gone"]
    assert not linked.send(FrameKind.KEYS)


def test_a_frame_for_a_worker_that_has_gone_is_not_taken(linked: Linked) -> None:
    def send_at_once() -> bool:
        linked.theirs.close()  # the loop has no time to notice
        return linked.link.send(FrameKind.KEYS)

    assert not linked.loop.call(send_at_once)
    until(lambda: linked.owner.ends)


@pytest.mark.parametrize("stream", [b"\xff" * 9, pack_frame(FrameKind.READY)[:4] + b"\x77"])
def test_what_is_no_frame_ends_the_link(linked: Linked, stream: bytes) -> None:
    linked.theirs.sendall(stream)
    until(lambda: linked.owner.ends)
    assert "a frame of" in linked.owner.ends[0]


def test_a_frame_that_the_owner_refuses_ends_the_link(linked: Linked) -> None:
    linked.owner.refuses = True
    linked.theirs.sendall(pack_frame(FrameKind.READY) * 2)
    until(lambda: linked.owner.ends)
    assert linked.owner.ends == ["not like this"]


def test_catching_up_reads_all_that_is_there(linked: Linked) -> None:
    def stalled() -> tuple[bool, int, bool]:
        for number in range(3):
            linked.theirs.sendall(pack_frame(FrameKind.RESULT, bytes([number]) * 20_000))
        return linked.link.catch_up(), len(linked.owner.frames), linked.link.catch_up()

    assert linked.loop.call(stalled) == (True, 3, False)


def test_a_closed_link_does_nothing(linked: Linked) -> None:
    linked.send(FrameKind.SIGN, bytes(BIG))
    linked.loop.call(linked.link.close)
    linked.loop.call(linked.link.close)
    linked.worker.send(FrameKind.READY)
    assert not linked.loop.call(linked.link.catch_up)
    assert (linked.owner.frames, linked.owner.ends) == ([], [])
    linked.ours.close()
    kept = 0
    with contextlib.suppress(ConnectionResetError):
        while chunk := len(linked.theirs.recv(READ_BYTES)):
            kept += chunk
    assert kept < BIG, "what was not written is dropped"
