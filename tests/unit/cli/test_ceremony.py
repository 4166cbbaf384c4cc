"""A key ceremony, and the checks of its transcript."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.cli.ceremony import transcript
from signer.cli.operations import flow
from signer.client import sign_operation
from signer.officers.approval import Proposal, parse
from tests.unit.cli.operations_played import ES256, A, B

KEY = "facilities/moh/keys/dcc"
SUBJECT = "CN=DCC 1,O=Ministry,C=VN"


def result_of(key: Any, subject: str = SUBJECT) -> dict[str, Any]:
    name = x509.Name.from_rfc4514_string(subject)
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {
        "key_version": f"{KEY}/versions/1",
        "algorithm": "ES256",
        "public_key_sha256": hashlib.sha256(spki).hexdigest(),
        "token": {"serial": "440d", "model": "SoftHSM v2"},
        "attributes": {"sensitive": True, "extractable": False},
        "certification_request": request.public_bytes(Encoding.PEM).decode(),
        "software": "signer 9",
    }


@pytest.fixture
def words(played: Any, people: Any, tmp_path: Path) -> tuple[object, ...]:
    played.operations.result = result_of(ec.generate_private_key(ec.SECP256R1()))
    played.operations.states = iter(["EXECUTING", "DONE"])
    played.operations.filled = {"token": "t"}
    return (
        *("ceremony", KEY, "--client", people.a.client, "--second", people.b.client),
        *("--algorithm", "ES256", "--subject", SUBJECT, "--witness", "Trần Văn A"),
        *("--witness", "Observer", "--out", tmp_path / "record"),
    )


@pytest.fixture
def record(run: Any, words: tuple[object, ...], tmp_path: Path) -> Path:
    done = run(*words, "--yes")
    assert done.code == 0, done.err
    return tmp_path / "record"


def by(*officers: Any) -> list[object]:
    return [word for each in officers for word in ("--officer", each.certificate)]


@pytest.fixture
def verified(run: Any, people: Any) -> Callable[[Path], Any]:
    def verify(folder: Path) -> Any:
        return run("ceremony", "--verify", folder, *by(people.a, people.b))

    return verify


def test_the_record_says_what_was_done(record: Path, played: Any, verified: Any) -> None:
    text = (record / "transcript.json").read_bytes()
    members = json.loads(text)
    [(_, content, _, _), *_] = played.operations.calls
    proposal = parse(members["approved"].encode())
    assert members["approved"].encode() == content
    assert proposal.details == {**ES256, "key": KEY, "token": "t", "subject": SUBJECT}
    assert members["operation"] == proposal.id
    assert [each["officer"] for each in members["participants"]] == [A, B]
    assert [each["officer"] for each in members["approvals"]] == [A, B]
    assert members["witnesses"] == ["Trần Văn A", "Observer"]
    assert members["result"] == played.operations.result
    assert set(members["times"]) == {"began", "proposed", "approved", "made"}
    assert all(members["times"].values())
    assert text == (json.dumps(members, indent=2, sort_keys=True) + "\n").encode()
    request = (record / "request.csr").read_text()
    assert request == played.operations.result["certification_request"]
    assert len(list(record.glob("transcript.*.sig"))) == 2
    done = verified(record)
    assert (done.code, done.err) == (0, "")
    assert played.operations.result["public_key_sha256"] in done.out


def test_the_second_officer_sees_the_bytes_that_the_first_signed(
    run: Any, words: tuple[object, ...], played: Any
) -> None:
    done = run(*words, "--yes")
    [(_, content, _, _), *_] = played.operations.calls
    assert done.out.count(hashlib.sha256(content).hexdigest()) == 2
    assert done.out.count("~ something changes") == 2
    assert "PRE_ACTIVE" in done.out


def test_each_step_is_asked_about(
    run: Any,
    words: tuple[object, ...],
    played: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(*words).code == 2  # nobody to ask
    monkeypatch.setattr(flow, "terminal", lambda: True)
    for answers, calls in (("n\n", []), ("y\nn\n", ["propose"])):
        monkeypatch.setattr(sys, "stdin", StringIO(answers))
        assert run(*words).code == 1
        assert [call[0] for call in played.operations.calls] == calls
    monkeypatch.setattr(sys, "stdin", StringIO("y\ny\nn\n"))
    assert run(*words).code == 1
    assert list((tmp_path / "record").iterdir()) == []
    played.operations.states = iter(["DONE"])
    monkeypatch.setattr(sys, "stdin", StringIO("y\ny\ny\n"))
    assert run(*words).code == 0


def test_a_failed_operation_leaves_no_transcript(
    run: Any, words: tuple[object, ...], played: Any, tmp_path: Path
) -> None:
    played.operations.states = iter(["FAILED"])
    done = run(*words, "--yes")
    assert (done.code, "no transcript" in done.err) == (1, True)
    assert list((tmp_path / "record").iterdir()) == []


def test_nothing_begins_that_cannot_end(
    run: Any, words: tuple[object, ...], played: Any, people: Any, tmp_path: Path
) -> None:
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "old").write_text("x")
    done = run(*words, "--yes")
    assert (done.code, "not empty" in done.err) == (1, True)
    (tmp_path / "record" / "old").unlink()
    for second, text in ((people.c.client, "not an officer"), (people.a.client, "two officers")):
        done = run(*words, "--second", second, "--yes")
        assert (done.code, text in done.err) == (1, True)
    assert (played.operations.asked, played.operations.calls) == ([], [])


def test_another_operation_is_not_signed(run: Any, words: tuple[object, ...], played: Any) -> None:
    played.operations.tamper = lambda members: members["details"].update(activate=True)
    done = run(*words, "--yes")
    assert (done.code, "nothing was signed" in done.err) == (1, True)
    assert played.operations.calls == []


def sign_again(record: Path, people: Any, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a transcript, and has both officers sign it."""
    file = record / "transcript.json"
    members = json.loads(file.read_text())
    change(members)
    text = (json.dumps(members, indent=2, sort_keys=True) + "\n").encode()
    file.write_bytes(text)
    for each in (people.a, people.b):
        signature = sign_operation(text, each.key.read_bytes())
        (record / transcript.signature_file(each.principal)).write_bytes(signature)


def approved(members: dict[str, Any], **changed: Any) -> None:
    """Puts another operation in place of the approved one, with the old approvals."""
    proposal = parse(members["approved"].encode())
    names = ("origin", "id", "kind", "proposer", "proposed_at", "expires_at", "officers", "details")
    kept = {name: getattr(proposal, name) for name in names}
    members["approved"] = Proposal(**(kept | changed)).canonical().decode()


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "are not an operation": lambda m: m.update(approved="x"),
    "(0|1) of 2 required signatures": lambda m: m["approvals"].pop(),
    "has not validly signed": lambda m: m["approvals"].reverse() or m["approvals"].pop(),
    "proposer .* has not validly signed": lambda m: approved(m, details={"key": KEY}),
    "was approved": lambda m: m.update(operation="6f2f1d5e-6b39-4bd2-b1b4-9a1f0c5b4f00"),
    "1 participant,": lambda m: m["participants"].pop(),
    "it created .*other": lambda m: m["result"].update(key_version="facilities/moh/keys/other"),
    "the algorithm is ES384": lambda m: m["result"].update(algorithm="ES384"),
    "extractable as False": lambda m: m["result"]["attributes"].update(extractable=True),
    "sensitive as True": lambda m: m["result"]["attributes"].pop("sensitive"),
    "request cannot be read": lambda m: m["result"].update(certification_request=None),
    "not signed by the key": lambda m: m["result"].update(public_key_sha256="00"),
    "request is not for": lambda m: m.update(
        result=result_of(ec.generate_private_key(ec.SECP256R1()), "CN=other")
    ),
    "does not describe a key": lambda m: m.update(result=None),
    "when the key was created": lambda m: m["times"].pop("made"),
    "was not written by `signer": lambda m: m.pop("approvals"),
    "not written by `signer ceremony`": lambda m: m.update(format="other"),
}


@pytest.mark.parametrize("text", CHANGES)
def test_a_transcript_of_something_else_is_found_though_both_signed_it(
    record: Path, people: Any, verified: Any, text: str
) -> None:
    sign_again(record, people, lambda _: None)
    assert verified(record).code == 0
    sign_again(record, people, CHANGES[text])
    done = verified(record)
    assert (done.code, done.out) == (1, "")
    assert re.search(text, done.err)


def test_changed_files_are_found(record: Path, people: Any, verified: Any, tmp_path: Path) -> None:
    names = [transcript.signature_file(each.principal) for each in (people.a, people.b)]
    text = (record / "transcript.json").read_bytes()
    changes: list[Callable[[Path], object]] = [
        lambda copy: (copy / "transcript.json").write_bytes(text.replace(b"Observer", b"Nobody")),
        lambda copy: (copy / "transcript.json").write_bytes(text + b" "),
        lambda copy: (copy / "transcript.json").write_bytes(b"x" * (1 << 20) + b"x"),
        lambda copy: (copy / "transcript.json").unlink(),
        lambda copy: (copy / names[0]).unlink(),
        lambda copy: (copy / names[1]).write_bytes((copy / names[0]).read_bytes()),
        lambda copy: (copy / names[1]).write_bytes(b""),
    ]
    for number, change in enumerate(changes):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(record, copy)
        assert verified(copy).code == 0
        change(copy)
        done = verified(copy)
        assert (number, done.code, done.out) == (number, 1, "")
        assert done.err.startswith("signer: ")


def test_the_certificates_of_both_officers_are_needed(run: Any, record: Path, people: Any) -> None:
    a, b, c = people
    for some in ((a,), (a, c), (b, b)):
        done = run("ceremony", "--verify", record, *by(*some))
        assert (done.code, "took part" in done.err) == (1, True)


@pytest.mark.parametrize("approval", [None, "AA=="])
def test_who_took_part_has_approved(
    run: Any, record: Path, people: Any, approval: str | None
) -> None:
    """A third one signs the transcript, and not the operation."""

    def add(members: dict[str, Any]) -> None:
        members["participants"].append({"officer": people.c.principal})
        if approval is not None:
            changed = {"officer": people.c.principal, "signature": approval}
            members["approvals"].append(members["approvals"][0] | changed)

    sign_again(record, people, add)
    text = (record / "transcript.json").read_bytes()
    signature = sign_operation(text, people.c.key.read_bytes())
    (record / transcript.signature_file(people.c.principal)).write_bytes(signature)
    done = run("ceremony", "--verify", record, *by(*people))
    assert (done.code, f"{people.c.principal} did not approve" in done.err) == (1, True)


@pytest.mark.parametrize("left_out", ["--client", "--second", "--algorithm", "--witness", "--out"])
def test_what_a_ceremony_needs(
    run: Any, words: tuple[object, ...], played: Any, left_out: str
) -> None:
    kept = list(words)
    while left_out in kept:
        at = kept.index(left_out)
        del kept[at : at + 2]
    done = run(*kept, "--yes")
    assert (done.code, left_out in done.err) == (2, True)
    assert played.operations.asked == []


def test_wrong_usage(run: Any, words: tuple[object, ...], people: Any, tmp_path: Path) -> None:
    certificate = people.a.certificate
    for wrong in (
        ("ceremony", "--verify", tmp_path),
        (*words, "--officer", certificate),
        ("ceremony", KEY, "--verify", tmp_path, "--officer", certificate),
        ("ceremony", "--verify", tmp_path / "absent", "--officer", certificate),
        ("ceremony", "--verify", tmp_path, "--officer", certificate, "--yes"),
        ("ceremony", "--verify", tmp_path, "--officer", certificate, "--bits", 2048),
        ("ceremony", "--out", tmp_path / "x"),
    ):
        assert run(*wrong).code == 2
