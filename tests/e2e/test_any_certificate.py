"""Whatever valid certificate goes in, the same one comes out of a verifier of others."""

import json
import string
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.algorithms import Algorithm
from tests.e2e.sources import Source, in_software, of_appliance
from tests.e2e.test_verifiers import READERS, judging

_SAFE = 2**53 - 1  # up to here all readers of JSON have the same numbers (RFC 8259 section 6)

_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_text = st.text(_characters, max_size=40)
_filled = st.text(_characters, min_size=1, max_size=40)
_transliterated = st.text(string.ascii_uppercase + "<", max_size=40)
_country = st.text(string.ascii_uppercase, min_size=1, max_size=10)
_count = st.integers(1, _SAFE)
_past = st.dates(date(1900, 1, 1), date(2026, 1, 1)).map(str)
_any_day = st.dates(date(1900, 1, 1), date(2099, 12, 31)).map(str)


@st.composite
def _times(draw: st.DrawFn, days: st.SearchStrategy[str]) -> str:
    """A time of one of the days with one of the offsets that the schema's versions have."""
    clock = draw(st.times().map(lambda time: time.strftime("%H:%M:%S")))
    fraction = draw(st.sampled_from(["", ".5", ".123456"]))
    return f"{draw(days)}T{clock}{fraction}{draw(st.sampled_from(['Z', '+07:00', '+0700', '-08']))}"


def _moments(days: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return days | _times(days)


_ENDS = {"co": _country, "is": _filled, "ci": _filled}
_CODES = dict.fromkeys(("tg", "vp", "mp", "ma"), _filled)
_ENTRIES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "v": st.fixed_dictionaries(
        {**_CODES, "dn": _count, "sd": _count, "dt": _moments(_past), **_ENDS}
    ),
    "t": st.fixed_dictionaries(
        {"tg": _filled, "tt": _filled, "sc": _times(_past), "tr": _filled, **_ENDS},
        optional={"nm": _text, "ma": _text, "tc": _text},
    ),
    "r": st.fixed_dictionaries(
        {"tg": _filled, "fr": _moments(_past), "df": _moments(_any_day), "du": _moments(_any_day)}
        | _ENDS
    ),
}
_birthdays = st.sampled_from(["", "1979", "1979-04"]) | _any_day
_people = st.fixed_dictionaries({"fnt": _transliterated}, optional={"fn": _text, "gn": _text}) | (
    st.fixed_dictionaries({"gnt": _transliterated}, optional={"fnt": _transliterated, "fn": _text})
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-_SAFE, _SAFE) | st.floats(-_SAFE, _SAFE) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def certificates(draw: st.DrawFn, kinds: Sequence[str]) -> dict[str, Any]:
    """A certificate that the schema accepts, also with members that it does not know."""
    kind = draw(st.sampled_from(kinds))
    others = draw(st.dictionaries(_text.map("x-{}".format), _values, max_size=2))
    members = {"ver": "1.3.0", "nam": draw(_people), "dob": draw(_birthdays), **others}
    members[kind] = [draw(_ENTRIES[kind])]
    return dict(draw(st.permutations(sorted(members.items(), key=lambda item: item[0]))))


def round_trips(who: Source, reader: str, kinds: Sequence[str]) -> None:
    with judging(reader, "HCERT", who.trust) as judge:

        @given(certificates(kinds), st.booleans())
        def round_trip(certificate: dict[str, Any], escaped: bool) -> None:
            payload = json.dumps(certificate, ensure_ascii=escaped, indent=2 * escaped or None)
            [signed] = who.signed("HCERT", [payload.encode()])
            assert judge(signed).get("dcc") == certificate

        round_trip()


@pytest.mark.hypothesis  # so that `make torture` has it, too
@pytest.mark.parametrize("reader", READERS["HCERT"])
def test_any_vaccination_comes_out_as_it_went_in(
    appliance: Any, tmp_path: Path, reader: str
) -> None:
    round_trips(of_appliance(appliance, "moh/dcc", tmp_path), reader, ["v"])


@pytest.mark.hypothesis
@pytest.mark.parametrize("reader", READERS["HCERT"])
def test_any_test_and_recovery_comes_out_as_it_went_in(tmp_path: Path, reader: str) -> None:
    """By a key in software: the certificate of the appliance's is for vaccinations alone."""
    who = in_software(Algorithm.ES256, tmp_path, now=int(time.time()))
    round_trips(who, reader, ["t", "r"])
