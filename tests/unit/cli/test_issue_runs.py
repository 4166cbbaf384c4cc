"""Runs of `signer issue` that end anywhere, again and again: no certificate is made twice."""

import json
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.cli.issue.journal import Journal
from signer.cli.issue.outputs import Drawn
from signer.cli.issue.records import CertificateIssuer, read_records
from signer.cli.issue.run import IssueJob, batches_of
from signer.cli.issue.signing import Certified, TwoSignatures, certify_all
from signer.client import (
    DeniedError,
    ExhaustedError,
    ItemError,
    ItemResult,
    Key,
    SignerClient,
    SignerClientError,
)
from signer.errors import OperatorError
from tests.synthetic import as_csv, people
from tests.unit.cli.operations_played import version

ISSUER = CertificateIssuer("VN", "Ministry of Health", "U:")
KEY = "facilities/moh/keys/dcc"
RECORDS = read_records("file", as_csv(people(23, seed=3)).encode(), ISSUER)
JOB = IssueJob(
    file=Path("file"),
    data=b"",
    client_file=Path("client"),
    facility_client=None,
    key=KEY,
    facility_key="records",
    out=Path("out"),
    issuer=ISSUER,
    drawn=Drawn((), "", "Q"),
    processes=1,
    batch=5,
    in_flight=1,
    timeout=1,
)


class CrashError(Exception):
    """The program ends here."""


class Weather:
    """What happens in one run: who is refused, what fails, and at which call the program ends."""

    def __init__(self, refused: str, failing: Sequence[int], end: int, *, answered: bool) -> None:
        self.refused, self.failing, self.end, self.answered = refused, failing, end, answered

    def is_out(self, payload: bytes) -> bool:
        return any(payload[-1 - at % 40] % 7 == at % 7 for at in self.failing)


FAIR = Weather("", (), -1, answered=True)


class IdempotentAppliance:
    """Signs as an appliance does: the same answer to the same request id, and to no other request.

    ``certified`` counts the certificates that it made of each UVCI.
    """

    def __init__(self) -> None:
        self.answers: dict[uuid.UUID, tuple[list[bytes], list[ItemResult]]] = {}
        self.certified: Counter[str] = Counter()
        self.weather, self.calls = FAIR, 0

    def get_key(self, name: str, **_: object) -> Key:
        return Key(name, "ES256", None, ("HCERT",), 4096, (), needs_cosignatures=True)

    def sign(
        self, key: str, message_format: str, payloads: list[bytes], **options: Any
    ) -> list[ItemResult]:
        self.calls += 1
        ends = self.calls == self.weather.end
        if ends and not self.weather.answered:
            raise CrashError
        if key.split("/")[1] == self.weather.refused:
            raise DeniedError("PERMISSION_DENIED", "POLICY_DENIED", "not now")
        before = self.answers.get(options["request_id"])
        if before is None:
            results = [self._item(message_format, *each) for each in enumerate(payloads)]
            self.answers[options["request_id"]] = payloads, results
        else:
            assert before[0] == payloads, "a request id was used for something else"
            results = before[1]
        if ends:
            raise CrashError
        return results

    def _item(self, message_format: str, index: int, payload: bytes) -> ItemResult:
        if self.weather.is_out(payload):
            error = ItemError("UNAVAILABLE", "HSM_UNAVAILABLE", "not now")
            return ItemResult(index, b"", "v", error)
        if message_format == "HCERT":
            self.certified[json.loads(payload)["v"][0]["ci"]] += 1
        return ItemResult(index, b"signed", "v", None, 1)


def signing(appliance: IdempotentAppliance, journal: Journal) -> TwoSignatures:
    client = cast(SignerClient, appliance)
    return TwoSignatures(client, client, journal, key=KEY, facility_key="records", timeout=1)


def run(appliance: IdempotentAppliance, folder: Path, weather: Weather) -> bool:
    """Runs once; returns whether it came to its end."""
    appliance.weather, appliance.calls = weather, 0
    with Journal.open(folder) as journal:
        signatures = signing(appliance, journal)
        try:
            batches = batches_of(journal, JOB, RECORDS)
            certify_all(batches, signatures.certify, lambda _: None, 1, lambda: False)
        except CrashError:
            return False
    return True


WEATHERS = st.builds(
    Weather,
    st.sampled_from(["", "", "01-001", "strict"]),
    st.lists(st.integers(0, 300), max_size=3),
    st.integers(1, 22),
    answered=st.booleans(),
)


@given(st.lists(WEATHERS, max_size=6))
def test_each_record_has_one_certificate_however_often_a_run_ends(weathers: list[Weather]) -> None:
    appliance = IdempotentAppliance()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        for weather in weathers:
            run(appliance, folder, weather)
        for _ in range(3):  # what failed without an answer fails in the first of them as well
            assert run(appliance, folder, FAIR)
        with Journal.open(folder) as journal:
            issued = [certificate.uvci for certificate in journal.certificates()]
            assert all(journal.is_issued(each.record, each.content) for each in RECORDS)
    assert len(issued) == len(RECORDS)
    assert appliance.certified == Counter(dict.fromkeys(issued, 1))


class Calls(IdempotentAppliance):
    """An appliance whose batches are calls of two items, of which a key refuses the second."""

    def __init__(self, refuses: str, error: SignerClientError) -> None:
        super().__init__()
        self.refuses, self.error = refuses, error

    def sign(  # type: ignore[override] # as the client does, which yields results as they come
        self, key: str, message_format: str, payloads: list[bytes], **_: Any
    ) -> Iterator[ItemResult]:
        for index, payload in enumerate(payloads):
            if index == 2 and self.refuses in key:
                raise self.error
            yield self._item(message_format, index, payload)


def test_a_facility_without_quota_keeps_no_other_one_waiting(tmp_path: Path) -> None:
    over = ExhaustedError("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "tomorrow")
    facility = RECORDS[0].facility
    appliance = Calls(f"facilities/{facility}/", over)
    made: list[Certified] = []
    with Journal.open(tmp_path / "out") as journal:
        signatures = TwoSignatures(
            *(cast(SignerClient, appliance),) * 2,
            journal,
            key=KEY,
            facility_key="records",
            timeout=1,
        )
        batches = batches_of(journal, JOB, RECORDS)
        certify_all(batches, signatures.certify, made.append, 1, lambda: False)
        refused = {refusal.line for each in made for refusal in each.refusals}
        of_facility = {each.line for each in RECORDS if each.facility == facility}
        assert refused
        assert refused < of_facility, "what was signed before the refusal is kept"
        assert all(journal.has(each.record) for each in RECORDS if each.line not in refused)


def test_what_was_certified_before_a_refusal_is_in_the_journal(tmp_path: Path) -> None:
    appliance = Calls(KEY, DeniedError("PERMISSION_DENIED", "POLICY_DENIED", "no more"))
    with Journal.open(tmp_path / "out") as journal:
        signatures = TwoSignatures(
            *(cast(SignerClient, appliance),) * 2,
            journal,
            key=KEY,
            facility_key="records",
            timeout=1,
        )
        batches = batches_of(journal, JOB, RECORDS)
        with pytest.raises(DeniedError):
            certify_all(batches, signatures.certify, lambda _: None, 1, lambda: False)
        assert journal.made == 2
        assert appliance.certified == Counter(each.uvci for each in journal.certificates())


MINISTRY = Key(
    *(KEY, "ES256", version(f"{KEY}/versions/1"), ("HCERT",), 4096, ()), needs_cosignatures=True
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"needs_cosignatures": False}, "no rule cosigning"),
        ({"formats": ("CMS",)}, "does not sign HCERT for this client"),
        ({"primary": None}, "has no active version"),
        (
            {"primary": version(f"{KEY}/versions/1", suspension="facility moh is suspended")},
            "signs nothing: facility moh is suspended",
        ),
    ],
)
def test_a_key_that_makes_no_certificate_is_found_before_facilities_sign(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    class Ministry(IdempotentAppliance):
        def get_key(self, name: str, **_: object) -> Key:
            return MINISTRY._replace(name=name, **changes)

    with Journal.open(tmp_path / "out") as journal:
        with pytest.raises(OperatorError, match=said):
            signing(Ministry(), journal).check()
        changes.clear()
        signing(Ministry(), journal).check()
