"""What the load client in Python sends: requests whose payloads differ."""

import json
import random
from collections.abc import Callable, Mapping, Sequence

from signer.model import Format, KeyName
from signer.v1 import signing_pb2

_LARGE = {"lists", "members"}  # kinds of bad payloads of which one request is kept
LISTS, MEMBERS = 87_000, 16_000  # in one bad payload: a quarter of a megabyte
_REQUESTS = 8  # different batches that a caller sends in turn
_SINGLES = 512  # the same for requests with one item

Requests = Callable[[int], bytes]
"""The n-th request of a caller, serialised."""


def batches(
    case_format: Format, batch: int, caller: int, *, bad: str | None = None
) -> list[signing_pb2.SignBatchRequest]:
    """Returns a few batches of one caller, without a key.

    ``bad``: payloads that do not parse, one of BAD.
    """
    source = random.Random(caller)  # noqa: S311  payloads only have to differ
    make = BAD[bad] if bad else PAYLOADS[case_format]
    return [
        signing_pb2.SignBatchRequest(
            format=f"FORMAT_{case_format.name}", payloads=[make(source) for _ in range(batch)]
        )
        for _ in range(1 if bad in _LARGE else _SINGLES if batch == 1 else _REQUESTS)
    ]


def requests(
    made: Sequence[signing_pb2.SignBatchRequest], keys: Sequence[KeyName], caller: int, callers: int
) -> Requests:
    """Returns the requests of one caller: its batches and the keys in turn.

    Serialised messages merge when they are concatenated, so the key is put before a batch that
    is serialised once.
    """
    serialised = [each.SerializeToString() for each in made]
    heads = [signing_pb2.SignBatchRequest(key=str(key)).SerializeToString() for key in keys]

    def request(number: int) -> bytes:
        key = (number * callers + caller) % len(heads)
        return heads[key] + serialised[number % len(serialised)]

    return request


def _message(source: random.Random) -> bytes:
    return source.randbytes(200)


def _record(source: random.Random) -> bytes:
    record = {
        "id": f"{source.getrandbits(64):016x}",
        "name": "NGUYEN VAN MAU",
        "born": f"19{source.randrange(50, 99)}-01-01",
        "vaccine": "EU/1/20/1528",
        "lot": f"{source.getrandbits(32):08X}",
        "dose": source.randrange(1, 4),
        "given": f"2021-{source.randrange(1, 13):02}-15",
        "facility": "01-001",
    }
    return json.dumps(record).encode()


def _cut(source: random.Random) -> bytes:
    """Returns a record without its last brace: all of it is parsed before it fails."""
    return _record(source)[:-1]


def _lists(source: random.Random) -> bytes:
    return b'["%d",%sNaN]' % (source.getrandbits(64), b"[]," * LISTS)


def _members(source: random.Random) -> bytes:
    members = b"".join(b',"member%05d":0' % number for number in range(MEMBERS))
    return b'{"id":"%d"%s' % (source.getrandbits(64), members)


def _dcc(source: random.Random) -> bytes:
    entry = {
        "tg": "840539006",
        "vp": "1119349007",
        "mp": "EU/1/20/1528",
        "ma": "ORG-100030215",
        "dn": source.randrange(1, 3),
        "sd": 2,
        "dt": f"2021-{source.randrange(1, 13):02}-15",
        "co": "VN",
        "is": "Ministry of Health",
        "ci": f"URN:UVCI:01:VN:{source.getrandbits(128):032X}",
    }
    name = {"fn": "Nguyễn", "fnt": "NGUYEN", "gn": "Văn Mẫu", "gnt": "VAN<MAU"}
    certificate = {"ver": "1.3.0", "nam": name, "dob": "1980-01-01", "v": [entry]}
    return json.dumps(certificate, ensure_ascii=False).encode()


def record_beside(certificate: bytes) -> bytes:
    """Returns the facility's record of the same person, as `cosigning` of `signer dev` has it."""
    whole = json.loads(certificate)
    record = {"name": whole["nam"], "born": whole["dob"], "vaccination": whole["v"][0]}
    return json.dumps(record, ensure_ascii=False).encode()


# TimeStampReq of RFC 3161: version 1, SHA-256 and a digest; then a nonce and certReq.
_REQUEST = bytes.fromhex("3041020101302f300b060960864801650304020104 20")
_NONCE = bytes.fromhex("02084b3c2d1e0f6a7b58 0101ff")


def _query(source: random.Random) -> bytes:
    return _REQUEST + source.randbytes(32) + _NONCE


PAYLOADS: Mapping[Format, Callable[[random.Random], bytes]] = {
    Format.MESSAGE: _message,
    Format.JWS: _record,
    Format.COSE_SIGN1: _message,
    Format.HCERT: _dcc,
    Format.CMS: _message,
    Format.TIMESTAMP: _query,
}

BAD: Mapping[str, Callable[[random.Random], bytes]] = {
    "cut": _cut,
    "empty": lambda _: b"",
    "lists": _lists,
    "members": _members,
}
"""Payloads that do not parse; the client in Go has the same."""
