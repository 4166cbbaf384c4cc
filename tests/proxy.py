"""A TCP proxy before a daemon, whose connections tests break."""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset


class Proxy:
    """Forwards connections to ``target`` (host:port) inside a ``with`` block."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._deaf = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(20)
        self._break()

    def cut(self, deaf: float = 0.05) -> None:
        """Resets all connections; for so many seconds before, no answer comes through."""
        self._deaf = True
        time.sleep(deaf)
        self._break()
        self._deaf = False

    def _break(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for each in (one for pair in pairs for one in pair):
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:
                return
            try:
                daemon = socket.create_connection(self._target, timeout=20)
            except OSError:  # it does not listen
                caller.close()
                continue
            daemon.settimeout(None)
            self.connections += 1
            with self._lock:
                self._pairs.append((caller, daemon))
            for source, sink, answers in ((caller, daemon, False), (daemon, caller, True)):
                pump = threading.Thread(
                    target=self._pump, args=(source, sink, answers), daemon=True
                )
                pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if not (answers and self._deaf):
                    sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
