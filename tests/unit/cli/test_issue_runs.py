"""Runs of `signer issue` that end anywhere, again and again: no certificate is made twice."""

import json
import tempfile
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from signer.cli.issue.journal import Journal
from signer.cli.issue.outputs import Drawn
from signer.cli.issue.records import CertificateIssuer, read_records
from signer.cli.issue.run import IssueJob, batches_of
from signer.cli.issue.signing import TwoSignatures, certify_all
from signer.client import DeniedError, ItemError, ItemResult, Key, SignerClient
from tests.synthetic import as_csv, people

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
        return Key(name, "ES256", None, ("HCERT",), 4096, ())

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


def run(appliance: IdempotentAppliance, folder: Path, weather: Weather) -> bool:
    """Runs once; returns whether it came to its end."""
    appliance.weather, appliance.calls = weather, 0
    client = cast(SignerClient, appliance)
    with Journal.open(folder) as journal:
        signatures = TwoSignatures(
            client, client, journal, key=KEY, facility_key="records", timeout=1
        )
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
