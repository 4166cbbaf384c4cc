"""The rows of the table: what is signed, with which keys, how it is sent, and the goal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from signer.algorithms import Algorithm
from signer.model import Format, KeyName


@dataclass(frozen=True)
class Flood:
    """What another facility sends while single items are timed."""

    key: KeyName
    format: Format
    bad: str | None = None  # which payloads that do not parse: one of workload.BAD
    batch: int = 4096
    callers: int = 8
    client: str = "issuer-b"


@dataclass(frozen=True)
class Overload:
    """So many times what the appliance has just done in a closed loop is asked for.

    Requests come at random times, whatever becomes of those before, with ``deadline`` seconds
    each, and are not repeated.
    """

    times: float = 3
    deadline: float = 2


@dataclass(frozen=True)
class Case:
    """One row of the table.

    ``keys`` sign in turn. ``cosigner``: a facility's key that has signed, before the measurement,
    the record which comes with each payload. ``window``: messages in flight on each of
    ``callers`` streams; 0: calls. ``pace``: requests a second at random times, by ``callers`` in
    turn; 0: each caller sends its next request when it has an answer. ``gathers``: ``callers``
    are tasks of one program that use ``sign_one``.
    ``loop_checks``: the C loop verifies every signature too. ``disturbed``: scrapes, reloads
    and officers' acts go on meanwhile. ``slices``: how many times longer its slices are.
    ``warm_up``: seconds of load before each of them, longer than a request takes. ``uses``: how
    often each key signs before the first slice. ``wrapped``: no token holds the keys, and the
    loops sign with ``loop_key``.
    ``never_refused``: a failed request or item misses the goal.
    ``goals``: by field of the row, the minimum of a ratio or the maximum of a cost.
    """

    name: str
    title: str
    format: Format
    algorithm: Algorithm
    keys: Sequence[KeyName]
    cosigner: KeyName | None = None
    batch: int = 500
    callers: int = 4
    window: int = 0
    gathers: bool = False
    loop_threads: int = 2
    loop_checks: bool = False
    floods: Sequence[Flood] = ()
    overload: Overload | None = None
    pace: float = 0.0
    disturbed: bool = False
    slices: int = 2
    warm_up: float = 0.2
    uses: int = 0
    wrapped: bool = False
    loop_key: KeyName | None = None
    never_refused: bool = True
    goals: Mapping[str, float] = field(default_factory=dict)

    @property
    def all_keys(self) -> list[KeyName]:
        """Every key that the case needs."""
        beside = [] if self.cosigner is None else [self.cosigner]
        return [*self.keys, *beside, *(flood.key for flood in self.floods)]

    @property
    def loop_keys(self) -> Sequence[KeyName]:
        """The keys with which the C loops sign."""
        return self.keys if self.loop_key is None else [self.loop_key]

    @property
    def connections(self) -> int:
        """One for all callers, as one program has; one for each stream."""
        return self.callers if self.window else 1


_RECORDS, _OTHER, _STRICT, _DCC, _COSIGNED, _DOCUMENTS, _DIGEST, _TSA = (
    KeyName("01-001", "records"),
    KeyName("01-002", "records"),
    KeyName("strict", "records"),
    KeyName("moh", "dcc"),
    KeyName("moh", "dcc-cosigned"),
    KeyName("moh", "documents"),
    KeyName("moh", "digest"),
    KeyName("moh", "tsa"),
)
_LOAD_KEYS = "l-"
_USES = 4  # of each wrapped key by two workers: of 16 keys, one is not unwrapped yet in one of them


def load_keys(count: int) -> list[KeyName]:
    """The keys of ``signer dev --facilities``."""
    return [KeyName(f"{_LOAD_KEYS}{number:05}", "records") for number in range(1, count + 1)]


ES256 = Algorithm.ES256


def _single(name: str, title: str, callers: int, **more: object) -> Case:
    defaults = {"format": Format.MESSAGE, "keys": [_RECORDS], "slices": 1}
    arguments: dict[str, object] = {**defaults, **more}
    return Case(name, title, algorithm=ES256, batch=1, callers=callers, **arguments)  # type: ignore[arg-type]


def _stream(streams: int, window: int) -> Case:
    title = f"{streams} streams, {window} messages in flight on each"
    return _single(f"stream-{streams}x{window}", title, streams, window=window)


def _gather(tasks: int) -> Case:
    title = f"{tasks} tasks of one program, sign_one"
    return _single(f"gather-{tasks}", title, tasks, gathers=True)


def _wrapped(name: str, title: str, count: int) -> Case:
    keys = load_keys(count)
    Random(0).shuffle(keys)  # noqa: S311  the order only has to be none
    title = f"{title}, one item a call, 16 callers"
    more = {"keys": keys, "slices": 4, "warm_up": 1.0, "uses": _USES}
    return _single(name, title, 16, wrapped=True, loop_key=_DIGEST, **more)


def _flood(name: str, title: str, p99_ms: float, *floods: Flood, **more: object) -> Case:
    defaults: dict[str, object] = {"callers": 1, "slices": 4, "warm_up": 1.0}
    return _single(name, title, floods=floods, goals={"p99_ms": p99_ms}, **(defaults | more))  # type: ignore[arg-type]


def _bad_flood(name: str, what: str, bad: str, *, batch: int = 4096, callers: int = 16) -> Case:
    flood = Flood(_OTHER, Format.JWS, bad, batch, callers)
    return _flood(f"flood-{name}", f"one item beside a flood of {what}", 25, flood)


CASES: Sequence[Case] = (
    Case(
        "message", "messages, 4 x 500", Format.MESSAGE, ES256, [_RECORDS],
        goals={"ratio_plain": 1.32, "ratio_best": 0.83, "front_cpu_us_per_item": 8},
    ),
    Case("jws", "JWS, 4 x 500", Format.JWS, ES256, [_RECORDS], goals={"ratio_plain": 1.10}),
    Case(
        "cose", "COSE_Sign1, 4 x 500", Format.COSE_SIGN1, ES256, [_RECORDS],
        goals={"ratio_plain": 1.10},
    ),
    Case(
        "hcert", "HCERT to HC1 text, 4 x 500", Format.HCERT, ES256, [_DCC],
        goals={"ratio_plain": 0.80},
    ),
    Case(
        "hcert-cosigned", "the same beside a facility's signed record", Format.HCERT, ES256,
        [_COSIGNED], _RECORDS, warm_up=1.0, goals={"ratio_plain": 0.45},
    ),
    Case(
        "cosigned-known", "the same, each record signed and checked here before",
        Format.HCERT, ES256, [_COSIGNED], _STRICT, warm_up=1.0, goals={"ratio_plain": 0.45},
    ),
    Case(
        "cms", "CMS, detached, 4 x 500", Format.CMS, ES256, [_DOCUMENTS],
        goals={"ratio_plain": 1.10},
    ),
    Case("timestamps", "time-stamps, 4 x 500", Format.TIMESTAMP, ES256, [_TSA]),
    Case(
        "rsa-checked", "RSA-2048, all checked", Format.MESSAGE, Algorithm.RS256,
        [KeyName("01-001", "records-rs256")], warm_up=1.0, goals={"ratio_plain": 0.95},
    ),
    Case(
        "checked", "P-256, all checked; so does the loop", Format.MESSAGE, ES256,
        [_STRICT], loop_checks=True, goals={"ratio_plain": 1.05},
    ),
    _single("single-1", "one item a call, one caller", 1, loop_threads=1, goals={"p99_ms": 5}),
    _single("single-16", "one item a call, 16 callers", 16),
    _single("single-64", "one item a call, 64 callers of one client", 64),
    _single(
        "hcert-single-16", "HCERT, one a call, 16 callers", 16, format=Format.HCERT, keys=[_DCC]
    ),
    _stream(4, 64),
    _stream(16, 16),
    _stream(64, 8),
    _gather(16),
    _gather(64),
    _gather(256),
    _flood(
        "flood-good", "one item while another facility floods", 20, Flood(_OTHER, Format.MESSAGE)
    ),
    _bad_flood("bad", "records without an end", "cut", callers=8),
    _bad_flood("empty", "empty payloads", "empty"),
    _bad_flood("lists", "payloads of 256 KiB of lists", "lists", batch=11),
    _bad_flood("members", "payloads of 16,000 members", "members", batch=10),
    _single(
        "busy-front", "as single-16, with scrapes, reloads, officers", 16, disturbed=True, slices=2
    ),
    _flood(
        "greedy-two", "one item beside two greedy clients", 20,
        Flood(_OTHER, Format.MESSAGE), Flood(_STRICT, Format.MESSAGE, client="issuer-c"),
    ),
    _flood(
        "greedy-50", "50 small facilities beside one that sends 100,000 items", 20,
        Flood(_OTHER, Format.MESSAGE, callers=25), keys=load_keys(50), callers=50, pace=50,
    ),
    Case(
        "overload", "RSA-2048, three times the capacity", Format.MESSAGE, Algorithm.RS256,
        [KeyName("01-001", "records-rs256")], batch=100, callers=8, overload=Overload(),
        warm_up=1.0, slices=8, never_refused=False,
        goals={"ratio_capacity": 0.9, "refused_p99_ms": 50},
    ),
    Case("keys-10", "10 keys in turn, 4 x 100", Format.MESSAGE, ES256, load_keys(10), batch=100),
    Case(
        "keys-10000", "10,000 keys in turn, 4 x 100", Format.MESSAGE, ES256, load_keys(10_000),
        batch=100,
    ),
    _wrapped("wrapped-1", "one wrapped key", 1),
    _wrapped("wrapped-15000", "15,000 wrapped keys at random", 15_000),
)  # fmt: skip

COMPARISONS: Sequence[tuple[str, str, float]] = (
    ("keys-10000", "keys-10", 0.9),
    ("wrapped-15000", "wrapped-1", 0.9),
    ("gather-16", "single-16", 3),
    ("gather-64", "single-16", 6),
    ("gather-256", "single-16", 12),
)
"""Of two cases of one run: how much the first keeps of the second, at least.

Each by its own plain loop, which went on beside it.
"""


def facilities_for(cases: Sequence[Case]) -> int:
    """Returns how many facilities for load tests the keys of these cases need."""
    keys = [key for case in cases for key in case.keys if key.facility.startswith(_LOAD_KEYS)]
    return len(set(keys))
