"""Our table of the DCC schema against the published one, which this repository does not hold.

The published file is read by a validator of JSON schemas, with those changes that make what we
decide differently: each is listed here.
"""

import copy
import json
import re
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signer.format_terms import ContentRules
from signer.formats import dcc
from signer.formats.payloads import PayloadError
from tests import vectors
from tests.conformance.test_dcc_vectors import ALL, load, name, payload_of

FOLDER = vectors.FOLDER / vectors.DCC_SCHEMA
SCHEMA = FOLDER / "DCC.combined-schema.json"
EXAMPLES = sorted(FOLDER.glob("examples/*/*.json"))

needs_schema = pytest.mark.skipif(
    not SCHEMA.is_file(), reason=f"NOT COMPARED with the published DCC schema: {SCHEMA} is missing"
)

ENFORCED = ContentRules(dcc_schema=True)


def accepted(payload: bytes) -> bool:
    """Whether we would sign it; an error must name a member."""
    try:
        dcc.check(dcc.read(payload), ENFORCED, dcc.horizon(0))
    except PayloadError as error:
        assert error.failure.message.startswith(error.failure.member)
        return False
    return True


# --- the published schema, and what we decide differently ------------------------------------


def is_day(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"[0-9]{4}(-[0-9]{2}){2}", text)) and bool(
            date.fromisoformat(text)
        )
    except ValueError:
        return False


def is_time(text: str) -> bool:
    """RFC 3339 in capitals, also with the offsets that the guide to the schema lists."""
    if not re.fullmatch(r"[-0-9]{10}T[0-9:.]+(Z|[-+][0-9]{2}(:?[0-9]{2})?)", text):
        return False
    clock = re.split("[Z+-]", text[11:])[0]
    if not re.fullmatch(r"[0-9]{2}(:[0-9]{2}){2}([.][0-9]+)?", clock) or clock[:2] == "24":
        return False
    try:
        return is_day(text[:10]) and datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


FORMATS = jsonschema.FormatChecker(formats=())
FORMATS.checks("date")(lambda text: not isinstance(text, str) or is_day(text) or is_time(text))
FORMATS.checks("date-time")(lambda text: not isinstance(text, str) or is_time(text))

PATTERNS = {
    r"^\d+.\d+.\d+$": r"^\d+\.\d+\.\d+$",  # a dot is a dot
    "[A-Z]{1,10}": "^[A-Z]{1,10}$",  # all of the country, not some of it
    # months and days exist
    r"^((19|20)\d\d(-\d\d){0,2}){0,1}$": (
        r"^((19|20)\d\d(-(0[1-9]|1[012])(-(0[1-9]|[12]\d|3[01])){0,1}){0,1}){0,1}$"
    ),
}
FILLED = (
    *("disease-agent-targeted", "vaccine-prophylaxis", "vaccine-medicinal-product"),
    *("vaccine-mah-manf", "test-result", "test-type", "issuer", "certificate_id"),
)


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            yield from parts(part)


def stricter(published: dict[str, Any]) -> dict[str, Any]:
    schema = copy.deepcopy(published)
    for definition in FILLED:
        schema["$defs"][definition]["minLength"] = 1
    changed = set()
    for part in list(parts(schema)):
        if part.get("type") == "string":
            part["not"] = {"pattern": "\0"}
        if isinstance(pattern := part.get("pattern"), str) and part.get("type") == "string":
            changed.add(pattern)
            ours = PATTERNS.get(pattern, pattern)
            # As ECMA-262 has it, which JSON Schema refers to: ASCII digits, no end before "\n".
            part["pattern"] = "(?a)" + re.sub(r"\$$", r"\\Z", ours)
    assert changed > PATTERNS.keys(), "the published schema has other patterns than these"
    return schema


INTEGERS = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
    "integer",
    lambda _, value: type(value) is int,  # 2.0 is none
)


def published_verdict() -> Any:
    schema = stricter(json.loads(SCHEMA.read_text(encoding="utf-8")))
    kind = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=INTEGERS)
    return kind(schema, format_checker=FORMATS).is_valid


# --- the vectors ------------------------------------------------------------------------------


@needs_schema
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.stem))
def test_published_examples_are_accepted(path: Path) -> None:
    payload = path.read_bytes()
    assert published_verdict()(json.loads(payload))
    assert accepted(payload)


@needs_schema
def test_all_published_examples_are_there() -> None:
    assert len(EXAMPLES) == 14


WITH_PAYLOAD = [path for path in ALL if "JSON" in load(path)]
REFUSED = {"common-DGC2"}  # three types in one


@needs_schema
@pytest.mark.parametrize("path", WITH_PAYLOAD, ids=name)
def test_vectors(path: Path) -> None:
    vector = load(path)
    expected = name(path) not in REFUSED
    assert (vector["EXPECTEDRESULTS"].get("EXPECTEDSCHEMAVALIDATION") is False) is not expected
    assert published_verdict()(vector["JSON"]) is expected
    assert accepted(payload_of(vector)) is expected


@needs_schema
def test_the_vector_that_no_schema_accepts_is_refused() -> None:
    [path] = [path for path in ALL if name(path) == "common-DGC1"]
    vector = load(path)
    assert vector["EXPECTEDRESULTS"]["EXPECTEDSCHEMAVALIDATION"] is False
    assert not accepted(bytes.fromhex(vector["CBOR"]))


# --- certificates that nobody has thought of --------------------------------------------------

ENDS = {"co": "VN", "is": "Bộ Y tế", "ci": "URN:UVCI:01:VN:0001#7"}
VALID: dict[str, dict[str, Any]] = {
    "v": {
        "tg": "840539006",
        "vp": "1119349007",
        "mp": "EU/1/20/1528",
        "ma": "ORG-100030215",
        "dn": 3,
        "sd": 1,
        "dt": "2021-06-11",
    },
    "t": {
        "tg": "840539006",
        "tt": "LP6464-4",
        "nm": "PCR",
        "ma": "1232",
        "sc": "2021-06-11T08:00:00+07:00",
        "tr": "260415000",
        "tc": "Bạch Mai",
    },
    "r": {"tg": "840539006", "fr": "2021-06-11", "df": "2021-06-22", "du": "2021-12-08"},
}
NAMES = {"fn": "Nguyễn", "fnt": "NGUYEN", "gn": "Văn Mẫu", "gnt": "VAN<MAU"}
DATES = (
    *("2021-06-11", "2021-02-29", "2020-02-29", "2021-13-01", "2021-06-11 ", "20210611"),
    *("2021-06-11T08:00:00Z", "2021-06-11T08:00:00.5+07:00", "2021-06-11T08:00:00+07"),
    *("2021-06-11T08:00:00+0700", "2021-06-11T08:00:00", "2021-06-11T08:00Z"),
    *("2021-02-29T08:00:00Z", "2021-06-11T25:00:00Z", "2021-06-11T08:00:00+25:00"),
    *("2021-06-11T24:00:00Z", "2021-06-11T08:00:00-00:00", "2021-06-11T08:00:00.1234567890Z"),
    *("2021-06-11\n", "2021-W23-5", "1899-01-01", "1979", "1979-04", "1979-4", "1979-04-31"),
    *(
        "1979-00-00",
        "1979-12-32",
        "yesterday",
        "\u0662\u0660\u0662\u0661-\u0660\u0666-\u0661\u0661",
        "2021-06-11t08:00:00z",
    ),
)
TEXTS = (
    *("", "a", "VN", "vn", "vietnam", "Viet Nam", "VIETNAMVIET", "A<B", "A B", "Đ", "\0", "a\0b"),
    *(
        "x" * 80,
        "x" * 81,
        "X" * 80,
        "X" * 81,
        "\U0001d51b" * 80,
        "1.3.0",
        "1.3",
        "1x3x0",
        "9",
        "1.3.0\n",
    ),
    *("1.3.0-rc", "10.20.30"),
)
NUMBERS = (0, 1, 2, 9, 10, 99, -1, 1 << 63, 2.0, 2.5, True, False)
VALUES = st.one_of(
    st.sampled_from(DATES),
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.text(max_size=90),
    st.sampled_from((None, [], {}, ["VN"], {"fnt": "A"})),
)


@st.composite
def certificates(draw: st.DrawFn) -> Any:
    """A certificate with up to three members changed, left out or added."""
    kind = draw(st.sampled_from(dcc.TYPES))
    names, entry = dict(NAMES), VALID[kind] | ENDS
    whole: dict[str, Any] = {"ver": "1.3.3", "nam": names, "dob": "1979-04-14", kind: [entry]}
    for _ in range(draw(st.integers(0, 3))):
        changed: dict[str, Any] = draw(st.sampled_from((entry, entry, entry, names, whole)))
        member = draw(st.sampled_from((*changed, "dob", "nm", "co", "unknown", *dcc.TYPES)))
        if draw(st.booleans()):
            changed.pop(member, None)
        else:
            changed[member] = draw(VALUES)
    return whole


@needs_schema
def test_every_decision_is_that_of_the_published_schema() -> None:
    valid, counts = published_verdict(), [0, 0]

    @settings(max_examples=100)
    @given(certificates())
    def compare(certificate: Any) -> None:
        verdict = valid(certificate)
        counts[verdict] += 1
        assert accepted(json.dumps(certificate).encode()) is verdict

    compare()
    assert min(counts) > 10, "nearly all certificates were accepted, or refused"


@needs_schema
@pytest.mark.parametrize("kind", dcc.TYPES)
def test_each_member_with_each_value(kind: str) -> None:
    valid = published_verdict()
    values: tuple[Any, ...] = (*DATES, *TEXTS, *NUMBERS, None, [], {})
    for members in (VALID[kind] | ENDS, NAMES, {"ver": "", "dob": ""}):
        for member in members:
            for value in values:
                whole: dict[str, Any] = {"ver": "1.3.3", "dob": "1979"}
                whole |= {"nam": dict(NAMES), kind: [VALID[kind] | ENDS]}
                place = {"nam": whole["nam"], kind: whole[kind][0], "": whole}
                where = "nam" if members is NAMES else "" if "ver" in members else kind
                place[where][member] = value
                expected = valid(whole)
                assert accepted(json.dumps(whole).encode()) is expected, (member, value)


@needs_schema
@pytest.mark.parametrize("kind", dcc.TYPES)
def test_other_types_are_absent_not_empty(kind: str) -> None:
    valid = published_verdict()
    whole: dict[str, Any] = {"ver": "1.3.3", "dob": "1979", "nam": NAMES}
    whole[kind] = [VALID[kind] | ENDS]
    assert valid(whole)
    for other in set(dcc.TYPES) - {kind}:
        nothing: tuple[Any, ...] = (None, [])
        for empty in nothing:
            assert not valid(whole | {other: empty})
            assert not accepted(json.dumps(whole | {other: empty}).encode())
