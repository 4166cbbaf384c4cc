from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from signer import cbor
from signer.audit.format.batch_records import (
    IntentRecord,
    OutcomeRecord,
    pack_reasons,
    unpack_reasons,
)
from signer.audit.format.merkle import (
    EMPTY_ROOT,
    inclusion_proof,
    leaf_hash,
    node_hash,
    verify_inclusion,
)
from signer.audit.format.parse import NewerError, parse, parse_head
from signer.audit.format.record import (
    FIRST_CHAIN,
    LEAF_ITEMS,
    MAX_BODY,
    MAX_DEPTH,
    Column,
    Record,
    RecordError,
    RecordKind,
    encode,
    frame,
)
from signer.audit.format.segments import (
    BrokenFrame,
    Frame,
    SegmentError,
    TornTail,
    list_segments,
    open_segment,
    read_frames,
)
from signer.format_terms import HcertTerms
from signer.model import Format

RESERVED = ("seq", "time", "kind", "count", "width", "root", "leaf_items")

names = st.text(st.characters(max_codepoint=127), max_size=30)
plain = (
    st.integers(-(1 << 64), (1 << 64) - 1)
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.booleans()
    | st.none()
)
values = st.recursive(
    plain, lambda v: st.lists(v, max_size=4) | st.dictionaries(names, v, max_size=4), max_leaves=8
)
fields = st.dictionaries(names.filter(lambda name: name not in RESERVED), values, max_size=8)
columns = st.builds(
    lambda width, items, leaf_items: Column(
        width, b"".join(item.ljust(width, b"\0") for item in items), leaf_items
    ),
    st.just(9),
    st.lists(st.binary(max_size=9), max_size=2 * LEAF_ITEMS + 2),
    st.sampled_from([1, LEAF_ITEMS]),  # of both versions
)
records = st.builds(
    Record,
    st.integers(0, 1 << 63),
    st.integers(0, 1 << 60),
    st.sampled_from(RecordKind),
    fields,
    st.none() | columns,
)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def within_depth(record: Record) -> bool:
    try:
        record.head()
    except RecordError:
        return False
    return True


INTENT = Record(
    7,
    1_700_000_000_123_456,
    RecordKind.INTENT,
    {
        "principal": "spiffe://example.test/issuer",
        "key_version": "facilities/01-001/keys/records/versions/1",
        "policy": bytes(range(32)),
        "now": 1_700_000_000,
        "request_id": None,
        "failures": {"3": "PAYLOAD_INVALID"},
    },
    Column(8, bytes(range(160))),
)


@settings(deadline=None)
@given(records.filter(within_depth))
def test_a_record_comes_back_from_its_bytes(record: Record) -> None:
    body, leaf = encode(record.seq, record.time_us, record.kind, record.fields, record.column)

    assert parse(body) == record
    assert record.body() == body
    assert leaf == record.leaf_hash() == sha256(b"\x00" + record.head()).digest()


@settings(deadline=None)
@given(records.filter(within_depth))
def test_heads_are_deterministic_cbor(record: Record) -> None:
    head = record.head()
    decoded = cbor2.loads(head)

    assert head == cbor2.dumps(decoded, canonical=True)
    encoded_names = [cbor2.dumps(name) for name in decoded]
    assert encoded_names == sorted(encoded_names)  # RFC 8949 section 4.2.1


# Half a surrogate pair must not stop a log, wherever a text came from.
foreign = st.text(st.characters(), max_size=60)
failures = st.dictionaries(st.integers(0, 4095), foreign, max_size=3)
intents = st.builds(
    IntentRecord,
    principal=foreign,
    request_id=foreign,
    call_id=foreign,
    payload_hash=st.binary(max_size=40),
    key_version=foreign,
    kid=st.binary(max_size=20),
    format=st.sampled_from(Format) | foreign,
    rule=foreign,
    policy=st.binary(max_size=40),
    facility=foreign,
    group=foreign,
    now=st.integers(-(1 << 66), 1 << 66),
    hcert=st.none() | st.builds(HcertTerms, foreign, st.integers()),
    asked=st.integers(),
    failed=failures,
)
outcomes = st.builds(OutcomeRecord, st.integers(), st.integers(), failures)
signing = st.builds(
    lambda seq, time_us, record, column: Record(
        seq,
        time_us,
        RecordKind.INTENT if isinstance(record, IntentRecord) else RecordKind.OUTCOME,
        record.to_fields(),
        column,
    ),
    st.integers(0, 1 << 63),
    st.integers(0, 1 << 60),
    intents | outcomes,
    st.none() | columns,
)


def by_the_general_encoder(record: Record) -> bytes | None:
    """The body as values of any shape are encoded; None for what a record cannot hold."""
    head: dict[str, Any] = {"seq": record.seq, "time": record.time_us, "kind": record.kind}
    head |= record.fields
    if (column := record.column) is not None:
        head |= {"count": column.count, "width": column.width, "root": column.root()}
        head |= {"leaf_items": 16} if column.leaf_items > 1 else {}
    try:
        encoded = cbor.encode_record(head, MAX_DEPTH)
    except cbor.CborError:
        return None
    return cbor2.dumps([encoded, column.data if column else None], canonical=True)


HALF_A_PAIR = Record(0, 0, RecordKind.OUTCOME, OutcomeRecord(0, 0, {0: "\ud800"}).to_fields(), None)


@settings(deadline=None)
@given(records | signing)
@example(HALF_A_PAIR)
def test_bytes_are_those_of_the_general_encoder(record: Record) -> None:
    expected = by_the_general_encoder(record)
    if expected is None:
        with pytest.raises(RecordError):
            record.body()
    else:
        assert record.body() == expected


def test_a_given_root_saves_hashing_and_changes_nothing() -> None:
    assert INTENT.column is not None
    arguments = (INTENT.seq, INTENT.time_us, INTENT.kind, INTENT.fields, INTENT.column)

    assert encode(*arguments, root=INTENT.column.root()) == encode(*arguments)
    wrong, _ = encode(*arguments, root=bytes(32))
    with pytest.raises(RecordError, match="the root of the record's column differs"):
        parse(wrong)


def test_the_head_alone_tells_of_the_column() -> None:
    head = parse_head(INTENT.head())
    column = INTENT.column
    assert column is not None
    assert head.shape is not None

    assert (head.seq, head.time_us, head.kind) == (INTENT.seq, INTENT.time_us, INTENT.kind)
    assert head.fields == INTENT.fields
    assert (head.shape.count, head.shape.width) == (20, 8)
    assert (head.shape.leaf_items, head.shape.leaves) == (16, 2)
    path = inclusion_proof(column.leaf_hashes(), 1)
    assert verify_inclusion(leaf_hash(column.leaf(18)), 1, 2, path, head.shape.root)


def changed(body: bytes) -> Iterator[bytes]:
    for position in range(len(body)):
        for bit in range(8):
            flipped = bytearray(body)
            flipped[position] ^= 1 << bit
            yield bytes(flipped)


def test_each_flipped_bit_is_refused_or_makes_another_record_of_exactly_these_bytes() -> None:
    refused = 0
    for flipped in changed(INTENT.body()):
        try:
            record = parse(flipped)
        except RecordError:
            refused += 1
        else:
            assert record != INTENT
            assert record.body() == flipped
            assert record.leaf_hash() != INTENT.leaf_hash()
    assert refused > 8 * 160  # every bit of the column at least, by its root


@settings(deadline=None)
@given(records.filter(within_depth), st.data())
def test_each_changed_byte_is_refused_or_makes_another_record(
    record: Record, data: st.DataObject
) -> None:
    body = bytearray(record.body())
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    try:
        other = parse(bytes(body))
    except RecordError:
        return
    assert other.body() == bytes(body)
    assert other.leaf_hash() != record.leaf_hash()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_without_another_error(data: bytes) -> None:
    for wrapped in (data, cbor2.dumps([data, None])):
        with pytest.raises(RecordError):
            parse(wrapped)


def a_head(**members: object) -> bytes:
    return cbor2.dumps({"seq": 0, "time": 0, "kind": "start", **members}, canonical=True)


def with_tail(tail: str) -> bytes:
    """A head with one more member, ``extra``, whose value is these bytes in hex."""
    head = a_head(extra=None)
    assert head.endswith(cbor2.dumps("extra") + b"\xf6")
    return head[:-1] + bytes.fromhex(tail)


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param("f93e00", id="float"),
        pytest.param("f7", id="undefined"),
        pytest.param("f0", id="simple value"),
        pytest.param("c11a00000000", id="tag of a time"),
        pytest.param("c249010000000000000000", id="bignum"),
        pytest.param("d81c01", id="tag of a shared value"),
        pytest.param("1801", id="long form of an integer"),
        pytest.param("9f01ff", id="indefinite length"),
        pytest.param("a2616101616102", id="duplicate name"),
        pytest.param("a2616201616102", id="names in another order"),
        pytest.param("a1c3a901", id="tagged name"),
        pytest.param("a10101", id="name that is a number"),
        pytest.param("a162c3a901", id="name that is not ASCII"),
        pytest.param("61ff", id="text that is not UTF-8"),
        pytest.param("81" * MAX_DEPTH + "01", id="too deep"),
        pytest.param("9bffffffffffffffff", id="long list without content"),
        pytest.param("5b7fffffffffffffff", id="long string without content"),
        pytest.param("0101", id="bytes after the head"),
    ],
)
def test_what_is_not_canonical_is_refused(tail: str) -> None:
    head = with_tail(tail)
    with pytest.raises(RecordError):
        parse_head(head)
    with pytest.raises(RecordError):
        parse(cbor2.dumps([head, None]))


def test_the_deepest_head_is_read() -> None:
    assert parse_head(with_tail("81" * (MAX_DEPTH - 1) + "01")).fields["extra"] == nested(
        MAX_DEPTH - 1
    )


@pytest.mark.parametrize(
    "head",
    [
        a_head(seq=-1),
        a_head(seq=True),
        a_head(time="0"),
        a_head(kind="unheard of"),
        a_head(kind=["start"]),
        a_head(count=1),
        a_head(count=0, width=0, root=EMPTY_ROOT),
        a_head(leaf_items=16),
        a_head(count=0, width=1, root=EMPTY_ROOT, leaf_items=1),
        a_head(count=0, width=1, root=EMPTY_ROOT, leaf_items=32),
        a_head(count=0, width=1, root=EMPTY_ROOT, leaf_items=True),
        a_head(count=1, width=1, root=b"short"),
        cbor2.dumps({"seq": 0, "time": 0}, canonical=True),
        cbor2.dumps([0, 0, "start"]),
    ],
)
def test_heads_without_their_members_are_refused(head: bytes) -> None:
    with pytest.raises(RecordError):
        parse_head(head)


def test_a_kind_of_a_later_version_is_told_from_damage() -> None:
    with pytest.raises(NewerError, match="was written by a newer version of signer"):
        parse_head(a_head(kind="unheard of"))
    with pytest.raises(RecordError) as told:
        parse_head(a_head(kind=7))
    assert not isinstance(told.value, NewerError)


@pytest.mark.parametrize(
    "parts",
    [
        [INTENT.head()],
        [INTENT.head(), None],
        [INTENT.head(), bytes(160)],
        [INTENT.head(), bytes(range(128))],
        [INTENT.head(), list(range(160))],
        [a_head(), b""],
        [a_head(), None, None],
        {"head": a_head()},
    ],
)
def test_bodies_whose_parts_do_not_fit_are_refused(parts: object) -> None:
    with pytest.raises(RecordError):
        parse(cbor2.dumps(parts))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda body: body + b"\x00", id="bytes after the body"),
        pytest.param(lambda body: b"\x98\x02" + body[1:], id="long form of the array"),
        pytest.param(lambda body: b"\x9f" + body[1:] + b"\xff", id="indefinite array"),
        pytest.param(lambda body: body[:-162] + b"\x59\x00" + body[-161:], id="long form of bytes"),
    ],
)
def test_bodies_in_another_form_are_refused(spoil: Callable[[bytes], bytes]) -> None:
    body = INTENT.body()
    assert body[-162:-160] == b"\x58\xa0"  # the head of the column's 160 bytes
    with pytest.raises(RecordError):
        parse(spoil(body))


def test_a_column_knows_its_items() -> None:
    column = Column(2, b"aabbcc")

    assert (column.count, column.item(0), column.item(2)) == (3, b"aa", b"cc")
    for index in (-1, 3):
        with pytest.raises(IndexError):
            column.item(index)
    assert Column(32, b"").root() == Column(32, b"", 1).root() == EMPTY_ROOT
    assert Column(6, b"aabbcc").root() == leaf_hash(b"aabbcc")
    assert column.root() == leaf_hash(b"aabbcc")  # the leaf of up to sixteen items
    one = [leaf_hash(item) for item in (b"aa", b"bb", b"cc")]
    assert Column(2, b"aabbcc", 1).root() == node_hash(node_hash(one[0], one[1]), one[2])
    for width, data in ((0, b""), (-1, b"a"), (2, b"abc")):
        with pytest.raises(RecordError):
            Column(width, data)


@pytest.mark.parametrize(
    "bad",
    [
        {"seq": 1},
        {"root": b""},
        {"x": 1.5},
        {"x": 1 << 64},
        {"x": -(1 << 64) - 1},
        {"x": {"é": 1}},
        {"x": {1: 1}},
        {"x": "\ud800"},
        {"x": {1, 2}},
        {"x": nested(MAX_DEPTH)},
    ],
)
def test_what_a_record_cannot_hold_is_refused_before_it_is_written(bad: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        encode(0, 0, RecordKind.START, bad)


def test_records_have_a_number_a_time_and_a_bounded_length() -> None:
    for seq, time_us in ((-1, 0), (0, -1)):
        with pytest.raises(RecordError):
            encode(seq, time_us, RecordKind.START, {})
    with pytest.raises(RecordError, match="longer than"):
        encode(0, 0, RecordKind.START, {"x": bytes(MAX_BODY)})
    with pytest.raises(RecordError, match="longer than"):
        parse(bytes(MAX_BODY + 1))


def test_names_of_the_model_and_tuples_are_plain_texts_and_lists() -> None:
    body, _ = encode(0, 0, RecordKind.START, {"format": Format.JWS, "windows": (1, 60)})

    assert parse(body).fields == {"format": "JWS", "windows": [1, 60]}


def test_errors_never_quote_values() -> None:
    secret = "Nguyen"
    for bad in ({"x": {secret: 1.5}}, {"x": [secret, {1}]}, {secret + "é": 1}):
        with pytest.raises(RecordError) as caught:
            encode(0, 0, RecordKind.START, bad)  # type: ignore[arg-type]  # values that it refuses
        assert secret not in str(caught.value)


def a_log(count: int) -> tuple[bytes, list[int]]:
    """Frames of some records, and where each begins."""
    data, chain, offsets = b"", FIRST_CHAIN, []
    for seq in range(count):
        offsets.append(len(data))
        body, _ = encode(seq, seq, RecordKind.WORKER, {"text": "x" * seq * 7})
        framed, chain = frame(chain, body)
        data += framed
    return data, offsets


def read(data: bytes, previous: bytes = FIRST_CHAIN) -> tuple[list[Frame], SegmentError | None]:
    frames = []
    try:
        for each in read_frames(data, previous):
            frames.append(each)  # noqa: PERF402  # what came before the error counts
    except SegmentError as error:
        return frames, error
    return frames, None


def test_frames_are_read_as_they_were_written() -> None:
    data, offsets = a_log(20)
    frames, error = read(data)

    assert error is None
    assert [each.offset for each in frames] == offsets
    assert [each.end for each in frames] == [*offsets[1:], len(data)]
    assert [parse(each.body).seq for each in frames] == list(range(20))
    rest = list(read_frames(memoryview(data), frames[9].chain, frames[10].offset))
    assert rest == frames[10:]
    assert list(read_frames(b"", FIRST_CHAIN)) == []


def test_a_frame_is_length_body_and_chain() -> None:
    framed, chain = frame(b"p" * 32, b"body")

    assert chain == sha256(b"p" * 32 + b"body").digest()
    assert framed == b"\x00\x00\x00\x04body" + chain


def test_every_cut_leaves_a_torn_tail_behind_whole_frames() -> None:
    data, offsets = a_log(6)
    for length in range(len(data)):
        frames, error = read(data[:length])
        whole = [end for end in [*offsets[1:], len(data)] if end <= length]
        assert len(frames) == len(whole)
        if length in {0, *whole}:
            assert error is None
        else:
            assert isinstance(error, TornTail)
            assert error.offset == max(whole, default=0)


@pytest.mark.parametrize("rest", [bytes(1), bytes(5000), b"\xff" * 5000, b"\x82" * 5000])
def test_rubbish_after_the_last_frame_is_a_torn_tail(rest: bytes) -> None:
    data, _ = a_log(3)
    frames, error = read(data + rest)

    assert len(frames) == 3
    assert isinstance(error, TornTail)
    assert error.offset == len(data)


def test_every_flip_is_found_at_its_frame_and_told_from_a_torn_tail() -> None:
    data, offsets = a_log(6)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        frames, error = read(bytes(flipped))
        hit = max(n for n, offset in enumerate(offsets) if offset <= position)
        assert error is not None
        assert error.offset == offsets[hit]
        assert len(frames) == hit
        if hit < 4:  # the frame after the next one is intact in any case
            assert isinstance(error, BrokenFrame)
        if hit == 5:
            assert isinstance(error, TornTail)


def test_frames_of_another_chain_are_no_continuation() -> None:
    data, offsets = a_log(4)
    without_second = data[: offsets[1]] + data[offsets[2] :]
    swapped = (
        data[: offsets[1]]
        + data[offsets[2] : offsets[3]]
        + data[offsets[1] : offsets[2]]
        + data[offsets[3] :]
    )

    for spoilt in (without_second, swapped):
        frames, error = read(spoilt)
        assert len(frames) == 1
        assert isinstance(error, SegmentError)
        assert error.offset == offsets[1]
    assert isinstance(read(data, bytes([1]) * 32)[1], BrokenFrame)


def test_the_search_behind_a_break_is_bounded() -> None:
    # Each of these could be the beginning of a frame of 8 MiB: hashing them all takes hours.
    hostile = b"\x00\x7f\xff\x00\x82\x58" * (2 * MAX_BODY // 6)

    assert isinstance(read(hostile)[1], BrokenFrame)


# What records of signing hold


UPGRADE = Path(__file__).parents[2] / "upgrade"


@pytest.mark.parametrize("version", ["schema-0001", "schema-0002"])
def test_records_of_earlier_versions_are_read_and_written_with_the_same_bytes(version: str) -> None:
    kinds = set()
    for segment in list_segments(UPGRADE / version / "audit"):
        with open_segment(segment) as (_, frames):
            for written in frames:
                record = parse(written.body)
                kinds.add(record.kind)
                fields = record.fields
                if record.kind is RecordKind.INTENT:
                    fields = IntentRecord.from_fields(fields).to_fields()
                elif record.kind is RecordKind.OUTCOME:
                    fields = OutcomeRecord.from_fields(fields).to_fields()
                assert record._replace(fields=fields).body() == written.body
    assert {RecordKind.INTENT, RecordKind.OUTCOME} <= kinds


def test_an_intent_comes_back_from_its_fields() -> None:
    intent = IntentRecord(
        principal="spiffe://signer.example/a",
        request_id="",
        call_id="c",
        payload_hash=bytes(32),
        key_version="facilities/01-001/keys/records/versions/1",
        kid=b"kid",
        format="HCERT",
        rule="facilities.01-001",
        policy=bytes(32),
        facility="01-001",
        group="",
        now=1_700_000_000,
        hcert=HcertTerms("AT", 3600),
        asked=3,
        failed={2: "PAYLOAD_INVALID", 0: "CONTENT_DENIED"},
    )
    fields = intent.to_fields()
    assert fields["hcert"] == ["AT", 3600]
    assert fields["failed"] == {"PAYLOAD_INVALID": b"\x04", "CONTENT_DENIED": b"\x01"}
    assert IntentRecord.from_fields(fields) == intent
    for name, wrong in (("now", "1"), ("failed", {"x": "y"}), ("policy", b"short"), ("rule", None)):
        with pytest.raises(RecordError, match=name):
            IntentRecord.from_fields(fields | {name: wrong})


def test_a_column_has_leaves_of_sixteen_items() -> None:
    items = [bytes([n]) * 3 for n in range(37)]
    column = Column(3, b"".join(items))

    parts = [b"".join(items[start : start + 16]) for start in (0, 16, 32)]
    assert column.leaf_hashes() == [leaf_hash(part) for part in parts]
    assert [column.leaf(index) for index in (0, 15, 16, 31, 36)] == [
        *(parts[0], parts[0], parts[1], parts[1], parts[2])
    ]
    hashes = column.leaf_hashes()
    assert column.root() == node_hash(node_hash(hashes[0], hashes[1]), hashes[2])
    for index in (-1, 37):
        with pytest.raises(IndexError):
            column.leaf(index)


# Reasons of failed items


@given(
    st.dictionaries(
        st.integers(0, 4095), st.sampled_from(["PAYLOAD_INVALID", "CONTENT_DENIED"]), max_size=99
    )
)
def test_reasons_come_back_from_their_bitmaps(reasons: dict[int, str]) -> None:
    packed = pack_reasons(reasons)
    assert unpack_reasons(packed) == reasons
    for reason, bitmap in packed.items():
        set_bits = {i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1}
        assert set_bits == {index for index, name in reasons.items() if name == reason}


def test_a_batch_of_which_all_items_failed_takes_less_than_a_kilobyte_more() -> None:
    def size(failed: dict[int, str]) -> int:
        return len(encode(0, 0, RecordKind.OUTCOME, OutcomeRecord(0, 1, failed).to_fields())[0])

    assert size(dict.fromkeys(range(4096), "HSM_UNAVAILABLE")) - size({}) < 1024
    two = {n: ("PAYLOAD_INVALID", "CONTENT_DENIED")[n % 2] for n in range(4096)}
    assert size(two) - size({}) < 1100


def test_reasons_of_version_1_are_read() -> None:
    assert unpack_reasons(
        {"3": "PAYLOAD_INVALID: payload is not JSON", "17": "HSM_UNAVAILABLE"}
    ) == {3: "PAYLOAD_INVALID: payload is not JSON", 17: "HSM_UNAVAILABLE"}


@pytest.mark.parametrize(
    "packed",
    [
        {"PAYLOAD_INVALID": 1},
        {"PAYLOAD_INVALID": "text"},
        {"PAYLOAD_INVALID": b""},
        {"PAYLOAD_INVALID": b"\x01\x00"},
        {"PAYLOAD_INVALID": bytes(512) + b"\x01"},
        {"PAYLOAD_INVALID": b"\x03", "CONTENT_DENIED": b"\x02"},
        {"PAYLOAD_INVALID": b"\x02", "1": "CONTENT_DENIED: x"},
        {"1": "a", "01": "b"},
        {"9" * 5000: "a"},
    ],
)
def test_what_is_no_map_of_reasons_is_refused(packed: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # record.reasons names the field
        unpack_reasons(packed)
    foreign: list[Any] = [packed, None, []]
    for wrong in foreign:
        with pytest.raises(RecordError, match="failures"):
            OutcomeRecord.from_fields({"intent": 0, "failures": wrong})
