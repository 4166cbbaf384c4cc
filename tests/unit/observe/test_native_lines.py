"""What libraries in C say becomes events: counted, without their texts, and never too many."""

import subprocess
import sys

import pytest

from signer.events import Event, HandshakesFailed, LibraryLines
from signer.observe.native_lines import event_of

GRPC = (
    b"I1130 11:18:39.654744   27227 ssl_transport_security.cc:2563] Handshake failed with error"
    b" SSL_ERROR_SSL: error:100000c0:SSL routines:OPENSSL_internal:%s: some text"
)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (GRPC % b"PEER_DID_NOT_RETURN_A_CERTIFICATE", HandshakesFailed("no_certificate", 1)),
        (GRPC % b"CERTIFICATE_VERIFY_FAILED", HandshakesFailed("certificate_refused", 1)),
        (GRPC % b"BAD_SIGNATURE", HandshakesFailed("certificate_refused", 1)),
        (GRPC % b"WRONG_VERSION_NUMBER", HandshakesFailed("not_tls", 1)),
        (GRPC % b"UNSUPPORTED_PROTOCOL", HandshakesFailed("version", 1)),
        (GRPC % b"SOMETHING_NEW", HandshakesFailed("other", 1)),
        (
            b"E1130 11:18:39.654744   27227 tcp_server.cc:12] a secret",
            LibraryLines("tcp_server.cc:12", 1),
        ),
        (b"a secret", LibraryLines("", 1)),
        (b"", LibraryLines("", 1)),
    ],
)
def test_lines(line: bytes, event: Event) -> None:
    assert event_of(line) == event


PROGRAM = """
import os, sys
from signer.observe import native_lines

seen = []
lines = native_lines.NativeLines(lambda event: seen.append(tuple(event)))
os.write(2, b"lost " * 100 + b"\\n")
for number in range(2000):
    try:
        os.write(2, b"E1130 11:18:39.654744 27227 one.cc:%d] text\\n" % number)
    except BlockingIOError:
        pass  # the library would lose the line
os.write(sys.__stderr__.fileno(), b"ours\\n")
print("python", file=sys.stderr)
lines.close()
os.write(2, b"after\\n")
print("too", file=sys.stderr)
assert 1 < len(seen) < 200, len(seen)
assert sum(event[1] for event in seen) > 100
"""


def test_libraries_and_we_write_apart() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "ours\npython\nafter\ntoo\n")
