"""The rows of the table: what is signed, with which keys, and the goal."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from signer.algorithms import Algorithm
from signer.model import Format, KeyName
from signer.tools.bench.load import Requests
from signer.v1 import signing_pb2

_REQUESTS = 8  # different ones that a caller sends in turn


@dataclass(frozen=True)
class Case:
    """One row of the table.

    ``keys`` sign in turn. ``loop_checks``: the C loop verifies every signature too.
    ``flood_key`` signs large batches while single items of ``keys`` are timed.
    ``goals``: by field of the row, the minimum of a ratio or the maximum of a cost.
    """

    name: str
    title: str
    format: Format
    algorithm: Algorithm
    keys: Sequence[KeyName]
    batch: int = 500
    callers: int = 4
    loop_threads: int = 2
    loop_checks: bool = False
    flood_key: KeyName | None = None
    goals: Mapping[str, float] = field(default_factory=dict)


_RECORDS, _DCC = KeyName("01-001", "records"), KeyName("moh", "dcc")


def load_keys(count: int) -> list[KeyName]:
    """The keys of ``signer dev --facilities``."""
    return [KeyName(f"l-{number:05}", "records") for number in range(1, count + 1)]


ES256 = Algorithm.ES256
CASES: Sequence[Case] = (
    Case(
        "message", "messages", Format.MESSAGE, ES256, [_RECORDS],
        goals={"ratio_plain": 1.25, "ratio_best": 0.85, "front_cpu_us_per_item": 8},
    ),
    Case("jws", "JWS", Format.JWS, ES256, [_RECORDS], goals={"ratio_plain": 1.10}),
    Case("cose", "COSE_Sign1", Format.COSE_SIGN1, ES256, [_RECORDS], goals={"ratio_plain": 1.10}),
    Case("hcert", "HCERT, HC1 text", Format.HCERT, ES256, [_DCC], goals={"ratio_plain": 0.80}),
    Case(
        "rsa-checked", "RSA-2048, all checked", Format.MESSAGE, Algorithm.RS256,
        [KeyName("01-001", "records-rs256")], goals={"ratio_plain": 0.95},
    ),
    Case(
        "checked", "P-256, all checked; so does the loop", Format.MESSAGE, ES256,
        [KeyName("strict", "records")], loop_checks=True, goals={"ratio_plain": 1.05},
    ),
    Case(
        "single", "one item alone; time added to the HSM's", Format.MESSAGE, ES256, [_RECORDS],
        batch=1, callers=1, loop_threads=1, goals={"p50_ms": 2.5, "p99_ms": 10},
    ),
    Case(
        "flood", "one item while another facility floods", Format.MESSAGE, ES256, [_RECORDS],
        batch=1, callers=1, flood_key=KeyName("01-002", "records"), goals={"p99_ms": 50},
    ),
    Case("keys-10", "10 keys in turn", Format.MESSAGE, ES256, load_keys(10), batch=100),
    Case(
        "keys-10000", "10,000 keys in turn", Format.MESSAGE, ES256, load_keys(10_000), batch=100
    ),
)  # fmt: skip

FLOOD_BATCH, FLOOD_CALLERS = 4000, 8


def requests(
    case_format: Format, keys: Sequence[KeyName], batch: int, caller: int, callers: int
) -> Requests:
    """Returns the requests of one caller: a few batches, with the keys in turn.

    Serialised messages merge when they are concatenated, so the key is put before a batch
    that is serialised once.
    """
    source = random.Random(caller)  # noqa: S311  payloads only have to differ
    make = _PAYLOADS[case_format]
    batches = [
        signing_pb2.SignBatchRequest(
            format=f"FORMAT_{case_format.name}", payloads=[make(source) for _ in range(batch)]
        ).SerializeToString()
        for _ in range(_REQUESTS)
    ]
    heads = [signing_pb2.SignBatchRequest(key=str(key)).SerializeToString() for key in keys]

    def request(number: int) -> bytes:
        key = (number * callers + caller) % len(heads)
        return heads[key] + batches[number % _REQUESTS]

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


_PAYLOADS: Mapping[Format, Callable[[random.Random], bytes]] = {
    Format.MESSAGE: _message,
    Format.JWS: _record,
    Format.COSE_SIGN1: _message,
    Format.HCERT: _dcc,
}
