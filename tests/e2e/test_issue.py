"""`signer issue` on a real appliance: what it makes, goes on with, replaces and refuses."""

import base64
import csv
import json
import os
import signal
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.batch_records import IntentRecord
from signer.audit.format.record import RecordKind
from tests.appliances import Appliance, serving
from tests.commands import SIGNER, WIDE, Done, signer
from tests.daemon import until
from tests.e2e import verifiers
from tests.e2e.test_revocation import opened
from tests.integration.test_audit_daemon import records as log_records
from tests.synthetic import Person, as_csv, as_json_lines, people

KEY, DOCUMENTS = "facilities/moh/keys/dcc-cosigned", "facilities/moh/keys/documents"
PROVINCE = "spiffe://dev.signer.example/issuer-b"


def change(policy: dict[str, Any]) -> None:
    """A province signs for two of its facilities; the third one does not delegate."""
    policy["groups"]["01"]["clients"] = [PROVINCE]
    policy["profiles"]["records"]["delegation"] = True
    policy["facilities"]["strict"]["delegation"] = False
    for name in ("01-001", "01-002"):
        policy["facilities"][name]["clients"] = []


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = Appliance(tmp_path_factory.mktemp("issue") / "appliance")
    made.init()
    with serving(made):
        yield made


class Office:
    """An issuing system: its folder, its file of records, and what it has issued."""

    def __init__(self, appliance: Any, folder: Path) -> None:
        self.appliance, self.out = appliance, folder / "out"
        self.file = folder / "records.csv"

    def command(self, *words: object) -> tuple[object, ...]:
        client = ("--client", self.appliance.client_file())
        return ("issue", *client, "--key", KEY, "--out", self.out, *words, self.file)

    def issue(self, records: list[Person], *words: object) -> Done:
        self.file.write_text(as_csv(records))
        return signer(*self.command(*words))

    def issued(self, records: list[Person], *words: object) -> dict[str, Any]:
        done = self.issue(records, "--json", *words)
        assert done.code == 0, done.err
        summary: dict[str, Any] = json.loads(done.out)
        return summary

    def list(self) -> list[dict[str, str]]:
        with (self.out / "certificates.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def texts(self) -> dict[str, str]:
        return {row["record"]: (self.out / row["file"]).read_text().strip() for row in self.list()}

    def certificates(self) -> dict[str, dict[str, Any]]:
        """What python-cwt accepts, by the ids of the records."""
        texts = self.texts()
        claims = verifiers.hcert(
            list(texts.values()), Path(self.appliance.key("moh/dcc-cosigned")["certificate"])
        )
        return {record: claim["dcc"] for record, claim in zip(texts, claims, strict=True)}


@pytest.fixture
def office(own: Any, tmp_path: Path) -> Office:
    return Office(own, tmp_path)


def signed_in(appliance: Any, message_format: str) -> list[tuple[IntentRecord, list[bytes]]]:
    """The intents of a format of which signatures were released, each with its digests.

    What was in progress when its caller was killed is closed in the log without an outcome.
    """
    found = log_records(appliance)
    released = {each.fields["intent"] for each in found if each.kind is RecordKind.OUTCOME}
    return [
        (
            IntentRecord.from_fields(each.fields),
            [each.column.item(index) for index in range(each.column.count)],
        )
        for each in found
        if each.fields.get("format") == message_format and each.column is not None
        if each.seq in released
    ]


def digests(appliance: Any, message_format: str) -> Counter[bytes]:
    """How often each message of a format was signed, by its digest."""
    intents = signed_in(appliance, message_format)
    return Counter(digest for _, column in intents for digest in column)


def steps(office: Office) -> list[dict[str, Any]]:
    """The whole lines of the journal."""
    path = office.out / "issued.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def batches(office: Office) -> int:
    return sum("issued" in step for step in steps(office))


# --- what is issued -----------------------------------------------------------------------------


def test_each_record_gets_one_certificate_with_two_signatures(office: Office) -> None:
    records = people(500, seed=7)
    before = digests(office.appliance, "HCERT")
    summary = office.issued(records, "--batch", 64)
    assert (summary["records"], summary["issued"], summary["failed"]) == (500, 500, 0)
    certificates = office.certificates()
    assert certificates.keys() == {person["record"] for person in records}
    for person in records:
        entry = certificates[person["record"]]["v"][0]
        assert [str(entry[name]) for name in ("vp", "mp", "ma", "dn", "sd", "dt")] == [
            person[name] for name in ("vaccine", "product", "manufacturer", "dose", "doses", "date")
        ]
    assert len({certificate["v"][0]["ci"] for certificate in certificates.values()}) == 500

    signed = digests(office.appliance, "HCERT") - before
    assert (signed.total(), set(signed.values())) == (500, {1})
    rows = [row for step in steps(office) for row in step.get("cosigned", ())]
    facilities = {row["record"]: (row["facility"], row["signed"]) for row in rows}
    for person in records:
        facility, token = facilities[person["record"]]
        assert facility == person["facility"]
        public_key = Path(office.appliance.key(f"{facility}/records")["public_key"])
        if person is records[0]:  # one foreign verifier for each would take a minute
            [verdict] = verifiers.jws([token], public_key, "ES256")
            said = json.loads(verdict["payload"])
            assert said["vaccination"] == certificates[person["record"]]["v"][0]
    links = {
        bytes(intent.cosigned[at : at + 32])
        for intent, _ in signed_in(office.appliance, "HCERT")
        for at in range(0, len(intent.cosigned), 32)
    }
    assert {sha256(token.encode()).digest() for _, token in facilities.values()} <= links


def test_files_are_private_and_their_names_say_nothing(office: Office) -> None:
    records = people(20, seed=8)
    office.issued(records)
    files = [path for path in office.out.rglob("*") if path.is_file()]
    assert len(files) == 20 + 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    folders = [office.out, *(path for path in office.out.rglob("*") if path.is_dir())]
    assert [stat.S_IMODE(path.stat().st_mode) for path in folders] == [0o700, 0o700]
    names = " ".join(path.name for path in files)
    for person in records:
        for word in (person["record"], *person["surname"].split(), *person["forenames"].split()):
            assert word not in names


def test_images_and_pages_are_read_by_a_foreign_reader(office: Office) -> None:
    office.issued(people(9, seed=9), "--qr", "png", "--qr", "svg", "--pages", "a5")
    texts = [(office.out / row["file"]) for row in office.list()]
    images = [path.with_suffix(".png") for path in texts]
    assert verifiers.qr_codes(images) == [path.read_text().strip() for path in texts]
    for path in texts:
        assert path.with_suffix(".svg").read_text().startswith("<?xml")
        assert "<svg" in path.with_suffix(".html").read_text()
    before = {path: path.stat().st_mtime_ns for path in office.out.rglob("*.html")}
    images[3].unlink()
    summary = office.issued(people(9, seed=9), "--qr", "png", "--pages", "a5")
    assert (summary["issued"], summary["unchanged"]) == (0, 9)
    assert images[3].exists()
    assert before == {path: path.stat().st_mtime_ns for path in office.out.rglob("*.html")}


def test_a_page_on_paper_can_be_read(office: Office, tmp_path: Path) -> None:
    """The page of a person as Debian's Chromium shows it, read from its image."""
    office.issued(people(1, seed=10), "--pages", "a4")
    [row] = office.list()
    page, shot = (office.out / row["file"]).with_suffix(".html"), tmp_path / "page.png"
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    browser += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,1300"]
    command = [*browser, "--force-device-scale-factor=2", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert verifiers.qr_codes([shot]) == [(office.out / row["file"]).read_text().strip()]


def test_json_lines_with_semicolons_or_not_are_the_same_job(office: Office) -> None:
    records = people(30, seed=11)
    office.issued(records)
    office.file = office.file.with_suffix(".jsonl")
    office.file.write_text("\ufeff" + as_json_lines(records).replace("\n", "\r\n"))
    done = signer(*office.command("--json"))
    assert done.code == 0, done.err
    assert (json.loads(done.out)["issued"], json.loads(done.out)["unchanged"]) == (0, 30)


# --- what is interrupted ------------------------------------------------------------------------


def begin(office: Office, records: list[Person], *words: object) -> subprocess.Popen[str]:
    office.file.write_text(as_csv(records))
    command = [*SIGNER, *map(str, office.command(*words))]
    return subprocess.Popen(
        command,
        env={**os.environ, **WIDE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(
    office: Office, process: subprocess.Popen[str], number: signal.Signals, more: int
) -> str:
    """Stops a run when it has so many more batches in its journal; returns its errors."""
    wanted = batches(office) + more
    until(lambda: batches(office) >= wanted or process.poll() is not None, "some batches are done")
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return errors


def check_once(office: Office, records: list[Person], before: dict[str, Counter[bytes]]) -> None:
    """Each record has one certificate that others accept, and was signed once by each key."""
    assert office.certificates().keys() == {person["record"] for person in records}
    for message_format, earlier in before.items():
        signed = digests(office.appliance, message_format) - earlier
        assert (signed.total(), set(signed.values())) == (len(records), {1})


@pytest.mark.parametrize(
    ("number", "times"), [(500, 2), pytest.param(10_000, 10, marks=pytest.mark.torture)]
)
def test_a_killed_run_goes_on_and_signs_nothing_twice(
    office: Office, number: int, times: int
) -> None:
    records = people(number, seed=12)
    before = {each: digests(office.appliance, each) for each in ("JWS", "HCERT")}
    words = ("--batch", number // 50)
    for _ in range(times):
        process = begin(office, records, *words)
        interrupt(office, process, signal.SIGKILL, 3)
        assert process.returncode == -signal.SIGKILL
    made = sum(len(step.get("issued", ())) for step in steps(office))
    assert 0 < made < number
    summary = office.issued(records, *words)
    assert (summary["issued"], summary["unchanged"]) == (number - made, made)
    check_once(office, records, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(office: Office, number: signal.Signals) -> None:
    records = people(400, seed=14 + number)
    before = {each: digests(office.appliance, each) for each in ("JWS", "HCERT")}
    process = begin(office, records, "--batch", 10, "--in-flight", 1)
    errors = interrupt(office, process, number, 2)
    assert process.returncode == 1
    assert "stopping when the batches in flight are done" in errors
    assert "of 400 records; what has been issued is kept: the same command goes on" in errors
    assert "Traceback" not in errors

    changed = [records[0] | {"date": "2022-02-01"}, *records[1:]]
    done = office.issue(changed, "--batch", 10)
    assert (done.code, "first let that run end" in done.err) == (1, True)
    done = office.issue(records, "--batch", 11)
    assert (done.code, "and --batch is different now" in done.err) == (1, True)
    office.issued(records, "--batch", 10)
    check_once(office, records, before)


# --- what is corrected --------------------------------------------------------------------------


def test_corrections_lead_to_a_signed_list_of_what_they_replace(
    office: Office, tmp_path: Path
) -> None:
    records = people(16, seed=15)
    office.issued(records, "--qr", "png")
    old = office.certificates()
    old_files = {row["record"]: office.out / row["file"] for row in office.list()}
    for person in records[:5]:
        person["date"] = "2022-01-31"
    summary = office.issued(records, "--qr", "png")
    assert (summary["issued"], summary["corrected"], summary["unchanged"]) == (5, 5, 11)
    assert summary["revoked"] == 5
    new = office.certificates()
    corrected = {person["record"] for person in records[:5]}
    for record, certificate in new.items():
        assert (certificate == old[record]) is (record not in corrected)
    for record in corrected:
        assert new[record]["v"][0]["dt"] == "2022-01-31"
        assert not old_files[record].exists()
        assert not old_files[record].with_suffix(".png").exists()

    done = signer(
        *("revocations", "build", "--client", office.appliance.client_file(), "--key", DOCUMENTS),
        *("--of", KEY, "--country", "VN", "--expires", "2031-01-01T00:00:00Z"),
        *("--out", tmp_path / "lists", summary["revoked_file"]),
    )
    assert done.code == 0, done.err
    content = opened(office.appliance, tmp_path / "lists" / "batch-0001.p7m")
    listed = {base64.b64decode(entry["hash"]) for entry in content["entries"]}

    def is_revoked(certificate: dict[str, Any]) -> bool:
        return sha256(certificate["v"][0]["ci"].encode()).digest()[:16] in listed

    assert {record for record, each in old.items() if is_revoked(each)} == corrected
    assert not any(map(is_revoked, new.values()))

    for person in records[:5]:  # back to what they were: these are new certificates, too
        person["date"] = people(16, seed=15)[records.index(person)]["date"]
    assert office.issued(records)["revoked"] == 10
    assert not any(map(is_revoked, office.certificates().values()))


# --- what is refused ----------------------------------------------------------------------------


def test_a_file_with_mistakes_is_refused_as_a_whole(office: Office) -> None:
    records = people(10, seed=16)
    records[2]["born"] = "yesterday"
    records[7]["facility"] = "Hà Nội"
    before = len(log_records(office.appliance))
    done = office.issue(records, "--json")
    assert done.code == 1
    assert [each["path"] for each in json.loads(done.out)["error"]["problems"]] == [
        "line 4, born",
        "line 9, facility",
    ]
    assert "yesterday" not in done.out + done.err
    assert not office.out.exists()
    assert not [
        each for each in log_records(office.appliance)[before:] if each.fields.get("format")
    ]


def test_what_the_appliance_refuses_is_listed_by_line_and_tried_again(office: Office) -> None:
    records = people(40, seed=17)
    records[3]["date"] = "2099-01-01"
    records[5]["facility"] = "99-999"
    for _ in range(2):
        done = office.issue(records, "--json")
        assert done.code == 1
        summary = json.loads(done.out)
        assert summary["issued"] + summary["unchanged"] == 38
        assert [(each["line"], each["reason"]) for each in summary["failures"]] == [
            (5, "CONTENT_DENIED"),
            (7, "POLICY_DENIED"),
        ]
    records[3]["date"], records[5]["facility"] = "2021-06-01", "01-001"
    done = office.issue(records)
    assert done.code == 0, done.err
    assert "40 records: 2 issued, 38 issued before" in done.out
    assert len(office.certificates()) == 40


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--key", "facilities/moh/keys/dcc"),
            "its policy has no rule cosigning: give that rule to the key",
        ),
        (("--key", "facilities/moh/keys/none"), "KEY_NOT_FOUND"),
        (("--key", DOCUMENTS), "does not sign HCERT for this client"),
    ],
)
def test_a_key_that_does_not_do_leaves_no_run_behind(
    office: Office, words: tuple[str, ...], said: str
) -> None:
    before = len(log_records(office.appliance))
    done = office.issue(people(5, seed=18), *words)
    assert done.code == 1
    assert said in done.err
    intents = [each for each in log_records(office.appliance)[before:] if each.fields.get("format")]
    assert not intents, "a facility signed for a certificate that cannot be made"
    assert "Traceback" not in done.err
    assert office.issued(people(4, seed=18))["issued"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--country", "Vn"), "--country is Vn: expected two capital letters"),
        (("--issuer", "x" * 81), "--issuer should be 1 to 80 characters"),
        (("--uvci-prefix", "x" * 49), "--uvci-prefix should be 1 to 48 characters"),
        (("--pages", "a3"), "is not one of 'a4', 'a5'"),
    ],
)
def test_wrong_usage(office: Office, words: tuple[str, ...], said: str) -> None:
    done = office.issue(people(5, seed=18), *words)
    assert (done.code, said in done.err) == (2, True)
    assert not office.out.exists()


def test_an_appliance_that_is_away_leaves_no_run_behind(office: Office) -> None:
    client = office.appliance.client_file()
    away = client.with_name("client-away.yaml")
    address = office.appliance.dev["address"]
    away.write_text(client.read_text().replace(address, "127.0.0.1:9"))
    done = office.issue(people(5, seed=19), "--client", away, "--timeout", 1)
    assert (done.code, "UNAVAILABLE" in done.err) == (1, True)
    assert office.issued(people(4, seed=19))["issued"] == 4


# --- a province ---------------------------------------------------------------------------------


def test_a_province_signs_for_its_facilities_and_the_log_says_for_which(
    make_appliance: Any, tmp_path: Path
) -> None:
    office = Office(make_appliance(policy=change), tmp_path)
    records = people(30, seed=20)
    province = ("--facility-client", office.appliance.client_file("issuer-b"))
    summary = json.loads(office.issue(records, "--json", *province).out)
    foreign = [person for person in records if person["facility"] == "strict"]
    assert summary["issued"] == 30 - len(foreign)
    assert {each["reason"] for each in summary["failures"]} == {"POLICY_DENIED"}
    assert len(summary["failures"]) == len(foreign)

    for intent, _ in signed_in(office.appliance, "JWS"):
        assert intent.principal == PROVINCE
        assert intent.rule == "groups.01.clients"
        assert intent.facility in {"01-001", "01-002"}
        assert intent.key_version.startswith(f"facilities/{intent.facility}/keys/records/")
    for intent, _ in signed_in(office.appliance, "HCERT"):
        assert intent.principal == "spiffe://dev.signer.example/issuer"

    [row] = [row for step in steps(office) for row in step.get("cosigned", ())][:1]
    token = tmp_path / "record.jws"
    token.write_text(row["signed"])
    config = ("--config", office.appliance.dir / "signer.yaml")
    found = signer("audit", "find", *config, "--file", token)
    assert found.code == 0, found.err
    assert f"on behalf of   facility {row['facility']}" in found.out
    [described] = json.loads(signer("audit", "find", *config, "--file", token, "--json").out)
    assert (described["on_behalf_of"], described["principal"]) == (row["facility"], PROVINCE)
    text = tmp_path / "certificate.txt"
    text.write_text(office.texts()[row["record"]])
    [described] = json.loads(signer("audit", "find", *config, "--file", text, "--json").out)
    assert described["on_behalf_of"] is None
