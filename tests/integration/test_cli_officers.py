"""Two officers at work with the commands, on a running appliance of their own."""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from signer.officers.approval import parse
from tests.appliances import Appliance
from tests.commands import Done, Run

KEY = "facilities/moh/keys/next"
VERSION = f"{KEY}/versions/1"
SUBJECT = "CN=DCC signer 1,O=Ministry of Health,C=VN"


class Office:
    """Officers a and b; ``a(...)`` and ``b(...)`` run a command as one of them."""

    def __init__(self, appliance: Appliance, run: Run) -> None:
        self.appliance, self.run = appliance, run

    def file(self, name: str) -> Path:
        return self.appliance.dir / f"client-officer-{name}.yaml"

    def identity(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.appliance.dev["clients"][f"officer-{name}"]
        return found

    def a(self, *words: object) -> Done:
        return self.run(*words, "--client", self.file("a"))

    def b(self, *words: object) -> Done:
        return self.run(*words, "--client", self.file("b"))

    def propose(self, *words: object) -> str:
        done = self.a(*words, "--yes", "--json")
        assert done.code == 0, done.err
        return str(json.loads(done.out)["id"])

    def approve(self, identity: str) -> dict[str, Any]:
        done = self.b("operations", "approve", identity, "--yes", "--wait", "--json")
        assert done.code == 0, done.err + done.out
        told: dict[str, Any] = json.loads(done.out)
        return told

    def both(self, *words: object) -> dict[str, Any]:
        return self.approve(self.propose("operations", "propose", *words))

    def versions(self, facility: str) -> dict[str, dict[str, Any]]:
        listed = json.loads(self.a("keys", "list", "--facility", facility, "--json").out)
        return {each["name"]: each for each in listed}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """One appliance for all tests of this file: each has keys of its own."""
    made = Appliance(tmp_path_factory.mktemp("officers") / "dev")
    made.init()
    made.set_workers(1)
    with made:
        yield made


@pytest.fixture
def office(running: Appliance, run: Run) -> Office:
    return Office(running, run)


@pytest.fixture
def certify(office: Office, tmp_path: Path) -> Callable[[Path], Path]:
    """Has ``openssl`` issue a certificate for a request, as an outside authority does."""
    pki = office.appliance.dir / "pki"

    def issue(request: Path) -> Path:
        made = request.with_suffix(".pem")
        authority = ("-CA", pki / "dcc-ca.pem", "-CAkey", pki / "dcc-ca.key", "-days", "730")
        command = ("openssl", "x509", "-req", "-in", request, *authority, "-out", made)
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        return made

    return issue


def test_from_a_ceremony_to_a_key_that_signs(
    office: Office, certify: Callable[[Path], Path], tmp_path: Path
) -> None:
    record, ca = tmp_path / "record", office.appliance.dir / "pki" / "dcc-ca.pem"
    done = office.run(
        *("ceremony", KEY, "--client", office.file("a"), "--second", office.file("b")),
        *("--algorithm", "ES256", "--subject", SUBJECT, "--witness", "W", "--out", record, "--yes"),
    )
    assert done.code == 0, done.err
    officers = [
        word for name in "ab" for word in ("--officer", Path(office.identity(name)["cert"]))
    ]
    assert office.run("ceremony", "--verify", record, *officers).code == 0
    members = json.loads((record / "transcript.json").read_text())
    assert members["result"]["token"]["serial"]
    assert members["result"]["attributes"]["extractable"] is False

    csr = office.a("keys", "csr", KEY).out
    assert csr == (record / "request.csr").read_text() == members["result"]["certification_request"]
    certificate = certify(record / "request.csr")
    office.both("import-certificate", VERSION, certificate, "--issuer", ca)
    office.both("activate", VERSION, "--sign-until", "+180d")
    shown = office.versions("moh")[VERSION]
    assert (shown["state"], shown["primary"]) == ("ACTIVE", True)
    der = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert shown["certificate"]["serial"] == f"{der.serial_number:x}"
    assert shown["certificate"]["subject"] == SUBJECT

    bundle = office.a("keys", "export", "--form", "certificates", "--facility", "moh").out
    assert der in x509.load_pem_x509_certificates(bundle.encode())
    kids = json.loads(office.a("keys", "export", "--form", "trust-list").out)
    assert der.fingerprint(der.signature_hash_algorithm).hex() in {k["thumbprint"] for k in kids}  # type: ignore[arg-type]


def test_a_rotation_with_certificates(
    office: Office, certify: Callable[[Path], Path], tmp_path: Path
) -> None:
    names = ["facilities/moh/keys/dcc", "facilities/moh/keys/dcc-rsa"]
    ca = office.appliance.dir / "pki" / "dcc-ca.pem"
    identity = office.propose(
        *("keys", "rotate", *names, "--activate-at", "+1s", "--overlap", "1h"),
        *("--sign-for", "180d", "--destroy-after", "30d"),
        *("--subject", "CN={key} {version},C=VN", "--issuer", ca),
    )
    assert office.approve(identity)["state"] == "WAITING"
    assert office.a("keys", "requests", identity, "--out", tmp_path / "requests").code == 0
    files = sorted((tmp_path / "requests").iterdir())
    assert [file.name for file in files] == ["moh.dcc-rsa.v2.csr", "moh.dcc.v2.csr"]
    made = [certify(file) for file in files]

    foreign = office.a("keys", "certificates", identity, office.identity("a")["cert"])
    assert (foreign.code, "OPERATION_REFUSED" in foreign.err) == (1, True)
    done = office.a("keys", "certificates", identity, made[0], "--wait", "--json")
    assert (done.code, json.loads(done.out)["state"]) == (0, "WAITING")
    again = office.a("keys", "requests", identity, "--out", tmp_path / "again", "--json")
    assert [Path(each["file"]).name for each in json.loads(again.out)] == ["moh.dcc.v2.csr"]
    done = office.a("keys", "certificates", identity, *made, ca, "--wait", "--json")
    assert (done.code, json.loads(done.out)["state"]) == (0, "DONE")

    plan = json.loads(office.a("keys", "plan", "--days", 1, "--json").out)
    assert {each["version"]: each["successor"] for each in plan} == {
        f"{name}/versions/1": f"{name}/versions/2" for name in names
    }
    assert office.a("keys", "plan", "--days", 1, "--names").out == ""
    assert {*names} <= {*office.a("keys", "plan", "--days", 181, "--names").out.splitlines()}


def test_facilities_are_enrolled_from_a_csv(office: Office, tmp_path: Path) -> None:
    csv, client = tmp_path / "f.csv", office.appliance.dev["clients"]["issuer"]["principal"]
    head = "facility,group,profile,clients,key,algorithm,bits\n"
    csv.write_text(head + "".join(f"x-{n},nowhere,none,{client},k,XX,\n" for n in range(15)))
    done = office.a("operations", "propose", "enrol", csv, "--yes")
    assert done.code == 1
    wrong = [line for line in done.err.splitlines() if ".csv, line " in line]
    assert len(wrong) == 3 * 15, "of each line group, profile and algorithm"
    csv.write_text(head + "".join(f"x-{n},01,records,{client},k,ES256,\n" for n in range(3)))
    told = office.both("enrol", csv)
    assert parse(told["content"].encode()).details["csv_sha256"] == (
        hashlib.sha256(csv.read_bytes()).hexdigest()
    )
    found = [each for n in range(3) for each in office.versions(f"x-{n}").values()]
    assert [each["state"] for each in found] == ["ACTIVE"] * 3


def test_a_policy_goes_to_the_appliance_and_back_without_a_shell_on_it(
    office: Office, tmp_path: Path
) -> None:
    config, desk = office.appliance.dir / "signer.yaml", tmp_path / "policy"
    first = json.loads(office.a("policy", "get", "--json").out)
    done = office.a("policy", "export", "--in-force", desk, "--json")
    assert json.loads(done.out)["policy_sha256"] == first["policy_sha256"]
    assert {file.name: file.read_text() for file in desk.iterdir()} == first["files"]
    same = office.b("policy", "diff", desk)
    assert (same.code, "the files are the policy in force" in same.out) == (0, True)

    file = desk / "policy.yaml"
    text = file.read_text()
    file.write_text(text.replace("max_batch_items: 4096", "max_batch_items: 4000", 1))
    assert file.read_text() != text
    shown = office.b("policy", "diff", desk)
    assert "max_batch_items 4096 becomes 4000" in shown.out
    assert "+      max_batch_items: 4000" in shown.out.replace("  +", "+  ")
    for words in (("policy", "propose"), ("operations", "propose", "policy")):
        identity = office.propose(*words, desk)
        assert office.a("operations", "reject", identity, "--reason", "once more").code == 0
    told = office.both("policy", desk)
    assert told["result"]["policy_files"] == "the appliance's own files hold it"
    sha256 = told["result"]["policy_sha256"]
    folder = tmp_path / "attached"
    shown = office.b("operations", "show", told["id"], "--attachment", folder)
    assert (shown.code, "what it has changed, as the" in shown.out) == (0, True)
    assert (folder / "policy.yaml").read_text() == file.read_text()

    # On the appliance: its files are in force; then somebody edits them.
    def here(*words: object) -> Done:
        return office.run(*words, "--config", config)

    assert f"in force: {sha256}" in here("policy", "get").err
    assert json.loads(here("check", "--json").out)["policy_in_force"] == sha256
    assert "which   is in force" in here("check").out
    own = office.appliance.dir / "policy" / "policy.yaml"
    own.write_text(text.replace("max_batch_items: 4096", "max_batch_items: 3000", 1))
    draft = f"a draft, not in force: in force is {sha256}"
    assert draft in here("check").out
    assert draft in here("doctor", "--json").out
    assert draft in here("policy", "show").err
    key = ("--key", "facilities/01-001/keys/records", "--principal", "spiffe://nobody.example/x")
    assert draft in here("policy", "explain", *key).err
    assert sha256 in here("policy", "explain", "--in-force", *key).err
    batch = json.loads(here("policy", "show", "--json").out)[0]["max_batch_items"]
    assert (
        batch
        != json.loads(here("policy", "show", "--in-force", "--json").out)[0]["max_batch_items"]
    )
    assert "max_batch_items 4000 becomes 3000" in here("policy", "diff").out
    refused = office.a("operations", "propose", "enrol", _one_facility(office, tmp_path), "--yes")
    assert (refused.code, "holds a draft" in refused.err) == (1, True)
    own_folder = ("policy", "export", "--in-force", own.parent)
    asked = here(*own_folder)
    assert (asked.code, "replaces or removes policy.yaml" in asked.err) == (2, True)
    assert here(*own_folder, "--yes").code == 0
    assert own.read_text() == file.read_text()
    assert "which   is in force" in here("check").out


def _one_facility(office: Office, folder: Path) -> Path:
    csv, client = folder / "one.csv", office.appliance.dev["clients"]["issuer"]["principal"]
    csv.write_text(
        f"facility;group;profile;clients;key;algorithm;bits\ny-1;01;records;{client};k;ES256;\n"
    )
    return csv


def test_what_one_officer_stops_two_let_go_on(office: Office) -> None:
    key = "facilities/01-001/keys/records"
    for target, word in ((key, "SUSPENDED"), ("facilities/01-002", ""), ("groups/01", "")):
        done = office.a("keys", "suspend", target, "--reason", "because")
        assert (done.code, word in done.out) == (0, True)
    suspended = json.loads(office.b("keys", "suspensions", "--json").out)
    assert {(each["scope"], each["name"], each["reason"]) for each in suspended} == {
        ("group", "01", "because"),
        ("facility", "01-002", "because"),
        ("version", f"{key}/versions/1", ""),
    }
    shown = office.versions("01-002")
    assert {each["suspension"] for each in shown.values()} == {
        "facility 01-002 is suspended by the officers"
    }
    for target in ("groups/01", "facilities/01-002", key):
        assert office.both("resume", target)["state"] == "DONE"
    assert office.a("keys", "suspensions", "--json").out == "[]\n"
    assert office.versions("01-001")[f"{key}/versions/1"]["state"] == "ACTIVE"

    identity = office.propose("operations", "propose", "new-version", key)
    done = office.b("operations", "reject", identity, "--reason", "no need")
    assert (done.code, "REJECTED" in done.out) == (0, True)
    assert office.a("operations", "wait", identity).code == 1
    listed = json.loads(office.a("operations", "list", "--state", "REJECTED", "--json").out)
    assert listed[0]["id"] == identity

    rsa = "facilities/01-001/keys/records-rsa"
    office.a("keys", "compromise", rsa, "--reason", "lost")
    kids = json.loads(office.a("keys", "export", "--form", "jwks").out)["keys"]
    gone = office.versions("01-001")[f"{rsa}/versions/1"]
    assert gone["state"] == "COMPROMISED"
    assert gone["thumbprint"] not in {each["kid"] for each in kids}
    issuer = office.appliance.dir / "client-issuer.yaml"
    refused = office.run("keys", "suspend", key, "--reason", "x", "--client", issuer)
    assert (refused.code, "POLICY_DENIED" in refused.err) == (1, True)


def test_a_stop_of_everything_is_seen_everywhere(office: Office) -> None:
    """It does not look like a healthy appliance, and each place says what it is."""
    config = office.appliance.dir / "signer.yaml"
    assert office.a("keys", "suspend", "facilities/01-002", "--reason", "one").code == 0
    assert office.appliance.get("/readyz") == (200, "ready\n1 facility is suspended\n")
    assert office.a("keys", "suspend", "everything", "--reason", "drill").code == 0
    status, ready = office.appliance.get("/readyz")
    assert (status, ready.splitlines()[0]) == (200, "ready")
    assert "everything is suspended by the officers" in ready
    assert "01-002" not in ready
    assert ">SUSPENDED</span>" in office.appliance.get("/")[1]
    top = office.run("top", "--config", config)
    shown = " ".join(top.out.split())
    assert re.search(r"! everything is suspended since \S+Z, by spiffe://\S+: drill", shown)
    assert "facility 01-002 is suspended" in shown
    listed = office.a("keys", "list")
    assert "ACTIVE" not in listed.out.replace("(ACTIVE)", "").replace("PRE_ACTIVE", "")
    assert "signs nothing: everything is suspended" in listed.err
    for target in ("everything", "facilities/01-002"):
        assert office.both("resume", target)["state"] == "DONE"
    assert office.appliance.get("/readyz") == (200, "ready\n")


def test_an_officers_reason_controls_no_terminal(office: Office) -> None:
    clear = "\x1b[2J\x1b]0;owned\x07\u202e"
    office.a("keys", "suspend", "facilities/01-002", "--reason", f"{clear} lost\nnothing")
    identity = office.propose("operations", "propose", "resume", "facilities/01-002")
    office.b("operations", "reject", identity, "--reason", f"{clear}\nit is done")
    config = office.appliance.dir / "signer.yaml"
    for words in (
        ("audit", "show", "--config", config),
        ("audit", "show", "--config", config, "--json"),
        ("keys", "suspensions", "--client", office.file("b")),
        ("operations", "show", identity, "--client", office.file("b")),
        ("operations", "list", "--client", office.file("b")),
        ("operations", "approve", identity, "--yes", "--client", office.file("b")),
    ):
        done = office.run(*words)
        shown = done.out + done.err
        assert shown.replace("\n", "").isprintable(), words
        assert "\nit is done" not in shown
        assert {"list", "approve", "--json"} & set(words) or "?" in shown
    office.both("resume", "facilities/01-002")
