"""``signer operations`` against an appliance that is played."""

import base64
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from signer.cli.operations import flow
from signer.officers import approval
from tests.unit.cli.operations_played import ES256, NOW, A, B, C, certify

KEY = "facilities/f/keys/k"
VERSION = f"{KEY}/versions/1"


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Somebody sits at a terminal and writes this."""

    def give(text: str) -> None:
        monkeypatch.setattr(flow, "terminal", lambda: True)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    return give


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    ca = certify(ec.generate_private_key(ec.SECP256R1()), "CN=ca,C=VN", ca=True)
    file.write_bytes(ca.public_bytes(Encoding.PEM))
    return file


PLAIN = [
    (("create-key", KEY, "--algorithm", "ES256"), {**ES256, "key": KEY, "subject": ""}),
    (
        (
            *("create-key", KEY, "--algorithm", "PS256", "--bits", 3072, "--token", "t"),
            *("--activate", "--sign-until", "2030-01-01T00:00:00Z", "--subject", "CN=x"),
        ),
        {
            "key": KEY,
            "algorithm": "PS256",
            "bits": 3072,
            "token": "t",
            "activate": True,
            "sign_until": 1_893_456_000,
            "subject": "CN=x",
        },
    ),
    (
        ("new-version", KEY, "--token", "t", "--subject", "CN=x"),
        {"key": KEY, "token": "t", "subject": "CN=x"},
    ),
    (
        (
            *("activate", VERSION, "--at", "2030-01-01T07:00:00+07:00"),
            *("--sign-until", "2030-01-02T00:00:00Z"),
        ),
        {"version": VERSION, "at": 1_893_456_000, "sign_until": 1_893_542_400},
    ),
    (("activate", VERSION), {"version": VERSION, "at": 0, "sign_until": 0}),
    (("clock",), {"wrong_from": 0}),
    (("clock", "--wrong-from", "8121"), {"wrong_from": 8121}),
    (("resume", "groups/01"), {"target": "groups/01"}),
    (("deactivate", VERSION), {"version": VERSION, "at": 0}),
    (
        ("schedule-destruction", VERSION, "--at", "2030-01-01T00:00:00Z"),
        {"version": VERSION, "at": 1_893_456_000},
    ),
    (("destroy", VERSION), {"version": VERSION}),
    (("restore", VERSION), {"version": VERSION}),
    (
        ("add-placement", VERSION, "--token", "u", "--cka-id", "AB01"),
        {"version": VERSION, "token": "u", "cka_id": "ab01"},
    ),
    (("remove-placement", VERSION, "--token", "u"), {"version": VERSION, "token": "u"}),
    (("create-wrapping-key", "--token", "t"), {"token": "t"}),
    (("destroy-wrapping-key", "w"), {"wrapping_key": "w"}),
    (("place-wrapping-key", "w", "--token", "u"), {"wrapping_key": "w", "token": "u"}),
    (("rewrap", "w", "--token", "t"), {"from_key": "w", "to_key": "", "token": "t"}),
    (("rewrap", "w", "--to", "v"), {"from_key": "w", "to_key": "v", "token": ""}),
    (("policy",), {"policy_sha256": ""}),
    (("policy", "--sha256", "AB"), {"policy_sha256": "ab"}),
]


@pytest.mark.parametrize(("words", "arguments"), PLAIN, ids=[str(words) for words, _ in PLAIN])
def test_arguments_by_kind(
    run: Any, played: Any, people: Any, words: tuple[object, ...], arguments: dict[str, Any]
) -> None:
    done = run("operations", "propose", *words, "--client", people.a.client, "--yes")
    assert (done.code, done.err) == (0, "")
    assert played.operations.asked == [(words[0], arguments, b"")]
    [(_, content, signature, _)] = played.operations.calls
    signed = approval.Signature(A, signature, NOW)
    approval.check_signature(content, signed, people.known, NOW)
    assert "~ something changes" in done.out
    assert approval.parse(content).id in done.out


def test_certificates_are_read_from_files(
    run: Any, played: Any, people: Any, authority: Path, tmp_path: Path
) -> None:
    above = certify(ec.generate_private_key(ec.SECP256R1()), "CN=root,C=VN", ca=True)
    both, leaf = tmp_path / "both.pem", tmp_path / "leaf.der"
    both.write_bytes(authority.read_bytes() + above.public_bytes(Encoding.PEM))
    one = certify(ec.generate_private_key(ec.SECP256R1()), "CN=leaf,C=VN")
    leaf.write_bytes(one.public_bytes(Encoding.DER))
    words = ("import-certificate", VERSION, leaf, "--issuer", both, "--replace")
    done = run("operations", "propose", *words, "--client", people.a.client, "--yes")
    assert (done.code, done.err) == (0, "")
    [(kind, arguments, _)] = played.operations.asked
    assert kind == words[0]
    assert (arguments["version"], arguments["replace"]) == (VERSION, True)
    assert x509.load_pem_x509_certificate(arguments["certificate"].encode()) == one
    issuers = [x509.load_pem_x509_certificate(each.encode()) for each in arguments["issuers"]]
    assert issuers == x509.load_pem_x509_certificates(both.read_bytes())
    done = run("operations", "propose", *words[:2], both, *words[3:], "--client", people.a.client)
    assert (done.code, "has 2 certificates" in done.err) == (1, True)


def test_officers_are_changed(run: Any, played: Any, people: Any) -> None:
    words = ("officers", "--add", people.c.certificate, "--remove", B)
    done = run("operations", "propose", *words, "--client", people.a.client, "--yes", "--json")
    assert done.code == 0
    content = json.loads(done.out)["content"].encode()
    details = approval.parse(content).details
    assert details["officers"] == {
        who: base64.b64encode(der).decode() for who, der in ((A, people.a.der), (C, people.c.der))
    }
    assert run("operations", "propose", "officers", "--client", people.a.client).code == 2
    assert len(played.operations.calls) == 1


def test_a_csv_goes_along(run: Any, played: Any, people: Any, tmp_path: Path) -> None:
    file = tmp_path / "facilities.csv"
    file.write_bytes(b"facility\r\n\xc3\xa1\r\n")
    words = ("operations", "propose", "enrol", file, "--client", people.a.client, "--yes")
    assert run(*words).code == 0
    assert played.operations.asked == [("enrol", {"token": ""}, file.read_bytes())]
    [(_, _, _, attachment)] = played.operations.calls
    assert attachment == file.read_bytes()
    file.write_bytes(b"x" * 4 * 1024 * 1024)
    done = run(*words)
    assert (done.code, "split it" in done.err) == (1, True)
    assert len(played.operations.asked) == 1


def test_an_officer_signs_the_policy_that_is_on_the_desk(
    run: Any, played: Any, people: Any, tmp_path: Path
) -> None:
    (tmp_path / "b.yaml").write_text("facilities: {}\n")
    (tmp_path / "a.yaml").write_text("profiles: {}\n")
    text = b"6:a.yaml,13:profiles: {}\n,6:b.yaml,15:facilities: {}\n,"
    digest = hashlib.sha256(text).hexdigest()
    me = ("--client", people.a.client, "--yes")
    for files in ([tmp_path], [tmp_path / "b.yaml", tmp_path / "a.yaml"]):
        assert run("policy", "propose", *files, *me).code == 0
        assert played.operations.asked.pop() == ("policy", {"policy_sha256": digest}, text)
    assert run("operations", "propose", "policy", tmp_path, *me, "--sha256", digest).code == 0
    done = run("policy", "propose", tmp_path, *me, "--sha256", "0" * 64)
    assert (done.code, f"the files are the policy {digest}" in done.err) == (1, True)
    played.operations.tamper = lambda members: members["details"].update(policy_sha256="0" * 64)
    done = run("policy", "propose", tmp_path, *me)
    assert (done.code, "nothing was signed" in done.err) == (1, True)


def proposed(played: Any, version: str, **changed: Any) -> Any:
    content = played.operations.content("destroy", {"version": version, "basis": {}})
    return played.operations.keep(content, target=version, **changed)


def test_a_list_shows_what_each_operation_is_about_and_fits_80_columns(
    run: Any, played: Any, people: Any
) -> None:
    long = f"facilities/{'f' * 60}/keys/{'k' * 60}/versions/1"
    one, two = proposed(played, VERSION), proposed(played, long, state="DONE", note="why " * 40)
    done = run("operations", "list", "--client", people.b.client)
    assert VERSION in done.out
    assert "open until" in done.out.partition(two.id)[0]
    assert "open until" not in done.out.partition(two.id)[2]
    assert all(len(line) <= 80 for line in done.out.splitlines() if long not in line)
    listed = json.loads(run("operations", "list", "--json", "--client", people.b.client).out)
    assert {each["target"] for each in listed} == {VERSION, long}
    done = run("operations", "approve", "--yes", one.id[:3], "--client", people.b.client)
    assert (done.code, "give at least 4 characters" in done.err) == (1, True)


def test_an_id_may_be_shortened_while_it_is_the_only_one(
    run: Any, played: Any, people: Any
) -> None:
    one, two = proposed(played, VERSION), proposed(played, f"{KEY}/versions/2")
    me = ("--client", people.b.client)
    done = run("operations", "show", one.id[:13].upper(), *me)
    assert (done.code, one.id in done.out) == (0, True)
    same = two._replace(id=one.id[:8] + two.id[8:])
    played.operations.kept[same.id] = same
    done = run("operations", "show", one.id[:8], *me)
    assert (done.code, f"2 operations have an id that begins with {one.id[:8]}" in done.err) == (
        1,
        True,
    )
    assert f"{KEY}/versions/2" in done.err
    done = run("operations", "show", "0000zz", *me)
    assert (done.code, "no operation has an id that begins with 0000zz" in done.err) == (1, True)


@pytest.mark.parametrize("state", ["DONE", "REJECTED", "FAILED", "EXPIRED"])
def test_what_takes_no_signatures_is_not_signed(
    run: Any, played: Any, people: Any, state: str
) -> None:
    one = proposed(played, VERSION, state=state, note="it changed: propose it again")
    done = run("operations", "approve", one.id, "--yes", "--client", people.b.client)
    assert (done.code, done.out, f"is {state}: it takes no more signatures" in done.err) == (
        1,
        "",
        True,
    )
    assert "operations retry" not in done.err
    assert played.operations.calls == []


def test_config_on_the_command_line_counts_more_than_the_environment(
    run: Any, played: Any, people: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNER_CLIENT", str(people.a.client))
    absent = tmp_path / "signer.yaml"
    absent.write_text("x: 1\n")
    words = ("operations", "list")
    assert run(*words).code == 0
    done = run(*words, "--config", absent)
    assert (done.code, f"{absent} is refused" in done.err) == (1, True)
    assert run(*words, "--config", absent, "--client", people.b.client).code == 0
    monkeypatch.delenv("SIGNER_CLIENT")
    assert run(*words).code == 2
    assert played


@pytest.mark.parametrize(
    "other",
    [{"kind": "restore"}, {"proposer": B}, {"details": {"version": f"{KEY}/versions/2"}}],
    ids=str,
)
def test_nothing_is_signed_that_was_not_asked_for(
    run: Any, played: Any, people: Any, tmp_path: Path, other: dict[str, Any]
) -> None:
    played.operations.tamper = lambda members: members.update(other)
    words = ("operations", "propose", "destroy", VERSION, "--client", people.a.client)
    done = run(*words, "--yes")
    assert (done.code, done.out) == (1, "")
    assert "nothing was signed" in done.err
    draft = tmp_path / "draft"
    assert run(*words, "--draft", draft).code == 1
    assert not draft.exists()
    assert played.operations.calls == []


def test_without_a_terminal_it_must_be_said(run: Any, played: Any, people: Any) -> None:
    for words in (("propose", "destroy", VERSION), ("approve", "x")):
        done = run("operations", *words, "--client", people.a.client)
        assert (done.code, done.out) == (2, "")
        assert "--yes" in done.err
    assert (played.operations.asked, played.operations.calls) == ([], [])


@pytest.mark.parametrize(("text", "code", "calls"), [("n\n", 1, 0), ("y\n", 0, 1), ("", 1, 0)])
def test_on_a_terminal_it_asks(
    run: Any, played: Any, people: Any, answer: Any, text: str, code: int, calls: int
) -> None:
    answer(text)
    done = run("operations", "propose", "destroy", VERSION, "--client", people.a.client)
    assert (done.code, len(played.operations.calls)) == (code, calls)
    assert "~ something changes" in done.out
    assert "Sign and propose this?" in done.err


def test_every_problem_is_told(run: Any, played: Any, people: Any) -> None:
    played.operations.problems = tuple(f"line {number}: wrong\x1b[2J" for number in range(25))
    done = run("operations", "propose", "destroy", VERSION, "--client", people.a.client, "--yes")
    assert (done.code, done.out) == (1, "")
    lines = done.err.splitlines()
    assert lines[:25] == [f"line {number}: wrong?[2J" for number in range(25)]
    assert lines[25].startswith("signer: ")
    assert played.operations.calls == []


@pytest.mark.parametrize("who", ["a", "b"])  # ECDSA and Ed25519
def test_a_draft_is_signed_by_openssl_and_submitted(
    run: Any, played: Any, people: Any, tmp_path: Path, who: str
) -> None:
    me, csv, draft = getattr(people, who), tmp_path / "f.csv", tmp_path / "draft"
    played.operations.proposer = me.principal
    csv.write_text("facility\n")
    words = ("operations", "propose", "enrol", csv, "--draft", draft, "--client", me.client)
    said = json.loads(run(*words, "--json").out)
    assert said["sha256"] == hashlib.sha256(draft.read_bytes()).hexdigest()
    assert (said["file"], said["attachment"]) == (str(draft), f"{draft}.attachment")
    done = run(*words)
    assert done.code == 0
    assert played.operations.calls == []
    attachment = draft.with_name("draft.attachment")
    assert attachment.read_bytes() == b"facility\n"
    assert f"submit {draft} --signature {draft}.sig --attachment {attachment}" in done.err
    [told] = [
        line.split("   ")[0].split()
        for line in done.err.splitlines()
        if line.strip().startswith("openssl") and ("Ed25519" in line) == (who == "b")
    ]
    subprocess.run([str(me.key) if word == "officer.key" else word for word in told], check=True)
    signature = Path(f"{draft}.sig")
    submit = ("operations", "submit", draft, "--signature", signature, "--attachment", attachment)
    done = run(*submit, "--client", me.client, "--json")
    assert done.code == 0
    [(_, content, sent, beside)] = played.operations.calls
    assert (content, beside) == (draft.read_bytes(), b"facility\n")
    approval.check_signature(
        content, approval.Signature(me.principal, sent, NOW), people.known, NOW
    )
    assert json.loads(done.out)["id"] == approval.parse(content).id


def test_only_ones_own_draft_is_submitted(
    run: Any, played: Any, people: Any, tmp_path: Path
) -> None:
    draft, signature = tmp_path / "draft", tmp_path / "sig"
    signature.write_bytes(b"s")
    draft.write_bytes(played.operations.content("destroy", {"version": VERSION}))
    words = ("operations", "submit", draft, "--signature", signature, "--client")
    done = run(*words, people.b.client)
    assert (done.code, "is a proposal of" in done.err) == (1, True)
    draft.write_bytes(draft.read_bytes() + b"\n")
    done = run(*words, people.a.client)
    assert (done.code, "--draft" in done.err) == (1, True)
    assert played.operations.calls == []


def keep(played: Any, **changed: Any) -> str:
    content = played.operations.content("destroy", {"version": VERSION})
    return str(played.operations.keep(content, **changed).id)


def test_approve_signs_the_bytes_of_the_operation(run: Any, played: Any, people: Any) -> None:
    identity = keep(played)
    done = run("operations", "approve", identity, "--client", people.b.client, "--yes")
    assert done.code == 0
    [(_, approved, signature)] = played.operations.calls
    content = played.operations.kept[identity].content
    assert approved == identity
    approval.check_signature(content, approval.Signature(B, signature, NOW), people.known, NOW)
    assert "~ something changes" in done.err
    assert A in done.err


def test_approve_refuses_other_bytes_and_ones_own(run: Any, played: Any, people: Any) -> None:
    identity = keep(played)
    other = played.operations.content("destroy", {"version": VERSION})
    for content, client, text in (
        (other, people.b.client, "nothing was signed"),
        (b"x", people.b.client, "nothing was signed"),
        (played.operations.kept[identity].content, people.a.client, "you proposed this operation"),
    ):
        played.operations.kept[identity] = played.operations.kept[identity]._replace(
            content=content
        )
        if client is people.a.client:
            identity = keep(played)
        done = run("operations", "approve", identity, "--client", client, "--yes")
        assert (done.code, done.out) == (1, "")
        assert text in done.err
    assert played.operations.calls == []


def test_approve_with_a_signature_from_elsewhere(
    run: Any, played: Any, people: Any, tmp_path: Path
) -> None:
    identity, file = keep(played), tmp_path / "sig"
    file.write_bytes(b"\x00smart card")
    words = ("operations", "approve", identity, "--signature", file, "--client", people.b.client)
    assert run(*words).code == 0
    assert played.operations.calls == [("approve", identity, b"\x00smart card")]


@pytest.mark.parametrize(
    ("end", "code"), [("DONE", 0), ("WAITING", 0), ("FAILED", 1), ("REJECTED", 1), ("EXPIRED", 1)]
)
def test_the_end_is_the_exit_code(run: Any, played: Any, people: Any, end: str, code: int) -> None:
    identity = keep(played)
    played.operations.states = iter(["EXECUTING", end])
    played.operations.result = {"key_version": VERSION}
    done = run("operations", "wait", identity, "--client", people.a.client, "--timeout", 5)
    assert done.code == code
    assert done.err.splitlines() == ["EXECUTING", end]
    assert VERSION in done.out
    assert played.operations.calls == [("wait", identity, 5.0)]
    played.operations.states = iter([end])
    words = ("operations", "approve", keep(played), "--wait", "--yes", "--json")
    done = run(*words, "--client", people.b.client)
    assert (done.code, json.loads(done.out)["state"]) == (code, end)


def test_show_writes_exactly_the_bytes(run: Any, played: Any, people: Any) -> None:
    identity = keep(played, note="a\x1b[31mb", result={"x": [1], "y": {"z": True}})
    words = ("operations", "show", identity, "--client", people.a.client)
    assert run(*words, "--bytes").out.encode() == played.operations.kept[identity].content
    shown = run(*words).out
    assert "a?[31mb" in shown
    assert "\x1b" not in shown
    said = json.loads(run(*words, "--json").out)
    assert (said["id"], said["state"], said["result"]["x"]) == (identity, "PROPOSED", [1])
    assert run(*words, "--json", "--bytes").code == 2


def test_list_and_officers(run: Any, played: Any, people: Any) -> None:
    first, second = keep(played), keep(played, state="DONE")
    done = run("operations", "list", "--client", people.a.client)
    assert done.out.isascii()
    assert first in done.out
    assert second in done.out
    words = ("operations", "list", "--state", "done", "--json", "--client", people.a.client)
    assert [each["id"] for each in json.loads(run(*words).out)] == [second]
    said = json.loads(run("operations", "officers", "--json", "--client", people.a.client).out)
    assert [each["principal"] for each in said["officers"]] == [A, B]
    assert (said["needed"], said["origin"]) == ({"activate": 2}, "log")
    shown = run("operations", "officers", "--client", people.a.client).out
    assert A in shown
    assert "+00:00" not in shown


def test_on_a_terminal_reject_shows_the_proposal_and_asks(
    run: Any, played: Any, people: Any, answer: Callable[[str], None]
) -> None:
    one = proposed(played, VERSION)
    played.operations.answers = {"reject": one._replace(state="REJECTED")}
    words = ("operations", "reject", one.id, "--reason", "no", "--client", people.a.client)
    answer("n\n")
    done = run(*words)
    assert (done.code, "nothing was changed" in done.err) == (1, True)
    assert f"operation {one.id}" in done.err
    assert played.operations.calls == []
    assert run(*words, "--yes").code == 0
    assert played.operations.calls == [("reject", one.id, "no")]


def test_an_empty_list_says_so(run: Any, played: Any, people: Any) -> None:
    assert played
    words = ("operations", "list", "--client", people.a.client)
    assert run(*words).out == "no operation is listed\n"
    assert json.loads(run(*words, "--json").out) == []


def test_reject_and_retry(run: Any, played: Any, people: Any) -> None:
    identity = keep(played, state="REJECTED", note="rejected: no")
    found = played.operations.kept[identity]
    played.operations.answers = {"reject": found, "retry": found._replace(state="APPROVED")}
    done = run("operations", "reject", identity, "--reason", "no", "--client", people.a.client)
    assert (done.code, "rejected: no" in done.out) == (0, True)
    done = run("operations", "retry", identity, "--client", people.a.client)
    assert f"operations wait {identity}" in done.out
    assert played.operations.calls == [("reject", identity, "no"), ("retry", identity)]
    assert run("operations", "reject", identity, "--client", people.a.client).code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("create-key", "facilities/x", "--algorithm", "ES256"),
        ("create-key", KEY),
        ("create-key", KEY, "--algorithm", "HS256"),
        ("activate", KEY),
        ("activate", VERSION, "--at", "2030-01-01"),
        ("activate", VERSION, "--sign-until", "tomorrow"),
        ("schedule-destruction", VERSION),
        ("add-placement", VERSION),
        ("import-certificate", VERSION, "absent.pem"),
    ],
)
def test_wrong_usage(run: Any, played: Any, people: Any, words: tuple[str, ...]) -> None:
    done = run("operations", "propose", *words, "--client", people.a.client, "--yes")
    assert (done.code, done.out) == (2, "")
    assert played.operations.asked == []
