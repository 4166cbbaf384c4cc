import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.audit.format import checkpoint
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.record import Column, RecordKind, Value
from signer.audit.format.segments import list_segments
from signer.audit.write.log import AuditLog, Listener
from signer.cli.audit.printing import about
from signer.cli.main import main
from tests.stand_ins import small_log

SAMPLE = Path(__file__).parents[3] / "config" / "signer.yaml"
ORIGIN = "signer.example/test"
PRINCIPAL = "spiffe://signer.example/facility/01-001"
BATCHES = 20


def digest(batch: int, item: int) -> bytes:
    return sha256(b"digest %d %d" % (batch, item)).digest()


def signature(batch: int, item: int) -> bytes:
    return sha256(b"signature %d %d" % (batch, item)).digest() * 2


def sealed(log: AuditLog, key: Ed25519PrivateKey) -> str:
    covered = Checkpoint(ORIGIN, *log.tree_head())
    return checkpoint.sign(covered, NoteVerifier.from_spki(ORIGIN, spki(key)), key.sign)


def spki(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An appliance's directory with a log of 20 batches of 3 items, the last item failed.

    Beside the log: its key, the newest checkpoint, and an early one elsewhere.
    """
    root = tmp_path_factory.mktemp("appliance")
    key = Ed25519PrivateKey.generate()
    (root / "audit" / "checkpoints").mkdir(parents=True)
    (root / "audit" / "audit.pub.pem").write_bytes(pem(key))
    shutil.copy(SAMPLE, root / "signer.yaml")
    log = small_log(
        root / "audit",
        origin=ORIGIN,
        segment_bytes=4000,
        listeners=[Listener(lambda _: None, snapshot=dict)],
    )
    log.append(RecordKind.START, {"version": "1"})
    for batch in range(BATCHES):
        fields: dict[str, Value] = {
            "principal": PRINCIPAL,
            "key_version": "facilities/01-001/keys/records/versions/1",
            "format": "JWS",
            "rule": "facilities.01-001.clients",
            "policy": sha256(b"policy").digest(),
            "request_id": f"request-{batch}",
            "facility": "01-001",
            "now": 1_767_571_200,
        }
        digests = Column(32, b"".join(digest(batch, item) for item in range(3)))
        intent = log.append(RecordKind.INTENT, fields, digests)
        made = Column(64, signature(batch, 0) + signature(batch, 1) + bytes(64))
        outcome: dict[str, Value] = {"intent": intent, "attempts": 1, "failures": {"2": "LOST"}}
        log.append(RecordKind.OUTCOME, outcome, made)
        if batch == 5:
            (root / "early").write_text(sealed(log, key))
    log.append(RecordKind.STOP, {})
    (root / "audit" / "checkpoints" / "newest").write_text(sealed(log, key))
    log.close()
    assert len(list_segments(root / "audit")) > 2
    return root


@pytest.fixture
def appliance(master: Path, tmp_path: Path) -> Path:
    """A copy of it, for the test alone."""
    return Path(shutil.copytree(master, tmp_path / "appliance"))


@click.command()
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def console_script(words: tuple[str, ...]) -> None:
    main(["audit", *words])


def run(*arguments: object) -> Result:
    """Runs `signer audit ...` as the console script does, refusals and exit codes included."""
    return CliRunner().invoke(console_script, ["--", *map(str, arguments)])


# --- verify ----------------------------------------------------------------------------------


def test_whole_log_is_in_order(appliance: Path) -> None:
    result = run("verify", "--config", appliance / "signer.yaml")
    assert result.exit_code == 0, result.stderr
    assert f"the log {ORIGIN} is in order" in result.stdout
    assert "Officers: none are known" in result.stdout
    assert "--decide does that" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stderr == ""


def test_whole_log_as_json_with_a_checkpoint_from_elsewhere(appliance: Path) -> None:
    result = run(
        "verify", "--dir", appliance / "audit", "--checkpoint", appliance / "early", "--json"
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["whole"] is True
    assert report["origin"] == ORIGIN
    assert report["officers"] is None
    assert report["checkpoints"] == 2
    assert report["items"] == 3 * BATCHES
    assert report["kinds"]["intent"] == report["kinds"]["outcome"] == BATCHES
    assert report["signed_records"] == report["records"]
    assert report["problems"] == []


def flip_a_byte(appliance: Path, segment: int = 1, at: int | None = None) -> Path:
    path = list_segments(appliance / "audit")[segment].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)
    return path


def lose_the_checkpoints(appliance: Path) -> None:
    (appliance / "audit" / "checkpoints" / "newest").unlink()


def forge_the_checkpoint(appliance: Path) -> None:
    path = appliance / "audit" / "checkpoints" / "newest"
    lines = path.read_text().split("\n")
    lines[1] = str(int(lines[1]) - 1)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    "tamper",
    [
        flip_a_byte,
        lambda appliance: flip_a_byte(appliance, -1),
        lambda appliance: list_segments(appliance / "audit")[-1].path.unlink(),
        lambda appliance: list_segments(appliance / "audit")[1].path.unlink(),
        lose_the_checkpoints,
        forge_the_checkpoint,
    ],
)
def test_what_is_wrong_is_told(appliance: Path, tamper: Callable[[Path], object]) -> None:
    tamper(appliance)
    result = run("verify", "--dir", appliance / "audit")
    assert result.exit_code == 1
    assert "wrong: " in result.stderr
    assert "NOT in order" in result.stdout
    described = run("verify", "--dir", appliance / "audit", "--json")
    assert described.exit_code == 1
    report = json.loads(described.stdout)
    assert report["whole"] is False
    assert report["problems"]


def test_a_damaged_header_is_told_with_its_file(appliance: Path) -> None:
    first = flip_a_byte(appliance, 0, at=60)
    nameless = run("verify", "--dir", appliance / "audit")
    assert nameless.exit_code == 1
    assert first.name in nameless.stderr
    assert "--origin" in nameless.stderr
    named = run("verify", "--dir", appliance / "audit", "--origin", ORIGIN)
    assert named.exit_code == 1
    assert f"wrong: {first.name}" in named.stderr


def test_another_key_and_another_origin_are_refused(appliance: Path) -> None:
    other = appliance / "other.pem"
    other.write_bytes(pem(Ed25519PrivateKey.generate()))
    checkpoints = appliance / "audit" / "checkpoints"
    shutil.copy(checkpoints / "newest", checkpoints / f"{9:016}")
    result = run("verify", "--dir", appliance / "audit", "--key", other)
    assert result.exit_code == 1
    of_key = [each for each in result.stderr.splitlines() if "no signature of the audit" in each]
    assert len(of_key) == 1, "one cause is told once, not for each checkpoint"
    assert f"checkpoints is of this log by the key {other}" in of_key[0]
    result = run("verify", "--dir", appliance / "audit", "--origin", "other.example/log")
    assert result.exit_code == 1


def test_no_log_no_key_no_place(appliance: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "contains no audit log" in run("verify", "--dir", empty).stderr
    assert run("verify", "--dir", empty).exit_code == 1
    (appliance / "audit" / "audit.pub.pem").write_text("no key")
    assert "is not a public key" in run("verify", "--dir", appliance / "audit").stderr
    (appliance / "audit" / "audit.pub.pem").unlink()
    absent = run("verify", "--dir", appliance / "audit")
    assert absent.exit_code == 1
    assert "audit.pub.pem" in absent.stderr
    assert run("verify").exit_code == 2
    assert run("show").exit_code == 2


SERVER_PACKAGES = ("pydantic", "sqlalchemy", "alembic", "pkcs11", "prometheus_client", "uvloop")


def without_server(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `signer audit ...` where no package of the server is installed."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({SERVER_PACKAGES}));"
        "from signer.cli.main import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "audit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_auditors_need_the_packages_of_the_server_only_to_decide(appliance: Path) -> None:
    place = ("--dir", appliance / "audit")
    verified = without_server("verify", *place)
    assert verified.returncode == 0, verified.stderr
    assert without_server("find", *place, digest(7, 1).hex()).returncode == 0
    decided = without_server("verify", *place, "--decide")
    assert (decided.returncode, decided.stdout) == (1, "")
    assert "pip install 'signer-appliance[server]'" in decided.stderr
    assert "Traceback" not in decided.stderr


def test_intents_that_cannot_be_decided_are_a_problem(appliance: Path) -> None:
    result = run("verify", "--dir", appliance / "audit", "--decide")
    assert result.exit_code == 1
    assert "wrong: record 1: its decision is of the time " in result.stderr
    assert "0 intents were decided once more" in result.stdout


# --- officers --------------------------------------------------------------------------------

OPERATION = "6a9b7d3e-0000-4000-8000-000000000001"
CONTENT = f'signer.v1 approval\n{ORIGIN}\n{OPERATION}\n{{\n  "kind": "\x1b[2J"\n}}\n'.encode()


@pytest.fixture
def officers(tmp_path: Path) -> Path:
    """The directory of a log with two officers, an act, and an execution that nobody approved."""
    key = Ed25519PrivateKey.generate()
    audit = tmp_path / "audit"
    (audit / "checkpoints").mkdir(parents=True)
    (audit / "audit.pub.pem").write_bytes(pem(key))
    log = small_log(audit, origin=ORIGIN)
    certificates: list[Value] = [["spiffe://x/a", b"1"], ["spiffe://x/b", b"2"]]
    log.append(
        RecordKind.OFFICERS, {"officers": certificates, "development": False, "policy": bytes(32)}
    )
    log.append(RecordKind.ACT, {"act": "suspend", "officer": "spiffe://x/a", "changed": {}})
    log.append(RecordKind.EXECUTION, {"operation": OPERATION, "content": CONTENT, "signatures": []})
    log.append(RecordKind.EXECUTED, {"operation": OPERATION, "state": "DONE", "note": ""})
    (audit / "checkpoints" / "newest").write_text(sealed(log, key))
    log.close()
    return audit


def test_verify_tells_officers_and_what_was_done_without_them(officers: Path) -> None:
    result = run("verify", "--dir", officers)
    assert result.exit_code == 1
    assert "wrong: record 2: " in result.stderr
    assert "NOT in order" in result.stdout
    described = run("verify", "--dir", officers, "--json")
    assert described.exit_code == 1
    report = json.loads(described.stdout)
    assert report["officers"] == ["spiffe://x/a", "spiffe://x/b"]
    assert (report["operations"], report["acts"], report["development"]) == (0, 1, False)
    [problem] = report["problems"]
    assert problem.startswith("record 2: ")


def test_an_operation_is_shown_as_its_officers_have_read_it(officers: Path) -> None:
    shown = run("show", "--dir", officers, 2)
    assert shown.exit_code == 0, shown.stderr
    assert '\n  "kind": "\x1b' not in shown.stdout
    assert shown.stdout.endswith(CONTENT.decode().replace("\x1b", "?"))
    assert CONTENT.hex() not in shown.stdout
    described = json.loads(run("show", "--dir", officers, 2, "--json").stdout)
    assert described["fields"]["content"] == CONTENT.decode()
    table = run("show", "--dir", officers).stdout
    assert OPERATION in table
    assert max(map(len, table.splitlines())) <= 80
    assert "signer.v1" not in table


# --- find ------------------------------------------------------------------------------------


def found(*arguments: object) -> list[dict[str, object]]:
    result = run("find", *arguments, "--json")
    assert result.exit_code == (0 if result.stdout.strip() != "[]" else 1), result.stderr
    parsed: list[dict[str, object]] = json.loads(result.stdout)
    return parsed


def test_finds_by_hash(master: Path) -> None:
    place = ("--dir", master / "audit")
    by_signature = found(*place, sha256(signature(7, 1)).hexdigest())
    by_digest = found(*place, digest(7, 1).hex())
    assert by_signature == by_digest
    (match,) = by_digest
    assert match["item"] == 1
    assert match["principal"] == PRINCIPAL
    assert match["request_id"] == "request-7"
    assert match["digest"] == digest(7, 1).hex()
    assert match["signature"] == signature(7, 1).hex()
    assert match["failure"] is None


def test_finds_a_failed_item_by_its_digest(master: Path) -> None:
    (match,) = found("--dir", master / "audit", digest(7, 2).hex())
    assert match["signature"] is None
    assert match["failure"] == "LOST"


@pytest.mark.parametrize(
    "finish",
    [lambda made: made, lambda made: base64.b64encode(made) + b"\n"],
    ids=["raw", "base64"],
)
def test_finds_the_signature_of_a_file(
    master: Path, tmp_path: Path, finish: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "signed"
    file.write_bytes(finish(signature(3, 0)))
    (match,) = found("--dir", master / "audit", "--file", file)
    assert match["signature"] == signature(3, 0).hex()
    assert match["compared"] == "same signature, no message in hand"
    file.write_bytes(finish(signature(BATCHES, 0)))
    assert found("--dir", master / "audit", "--file", file) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"HC1:", b"HC1:abc", b"HC1::::", b"HC1:0", b"a.b.c", b"\xd2\x84", b"\xd2\x80", b"===="],
)
def test_a_file_that_is_no_message_is_not_found(
    master: Path, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "signed"
    file.write_bytes(content)
    result = run("find", "--dir", master / "audit", "--file", file)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "not in the log" in result.stderr


def test_find_prints_for_eyes(master: Path) -> None:
    result = run("find", "--config", master / "signer.yaml", digest(0, 0).hex())
    assert result.exit_code == 0
    assert f"asked for by   {PRINCIPAL}\n" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("words", [(), ("abc",), ("zz" * 32,), ("00" * 31,)])
def test_find_wants_a_hash_or_a_file(master: Path, words: tuple[str, ...]) -> None:
    result = run("find", "--dir", master / "audit", *words)
    assert result.exit_code == 2
    assert "SHA" in result.stderr


def test_find_in_a_damaged_log_says_so(appliance: Path) -> None:
    flip_a_byte(appliance)
    result = run("find", "--dir", appliance / "audit", digest(19, 0).hex())
    assert result.exit_code == 1
    assert "damaged" in result.stderr


# --- prove -----------------------------------------------------------------------------------


def test_proof_verifies_with_the_key_alone(master: Path, tmp_path: Path) -> None:
    result = run("prove", "--dir", master / "audit", digest(9, 1).hex())
    assert result.exit_code == 0, result.stderr
    file, key = tmp_path / "proof.json", tmp_path / "key.pem"
    file.write_text(result.stdout)
    key.write_bytes((master / "audit" / "audit.pub.pem").read_bytes())
    verified = run("verify", "--proof", file, "--key", key, "--json")
    assert verified.exit_code == 0, verified.stderr
    proven = json.loads(verified.stdout)
    assert proven["log"] == ORIGIN
    assert proven["principal"] == PRINCIPAL
    assert proven["rule"] == "facilities.01-001.clients"
    assert proven["policy_sha256"] == sha256(b"policy").hexdigest()
    assert proven["signature"] == signature(9, 1).hex()
    printed = run("verify", "--proof", file, "--key", key).stdout
    assert f"asked for by   {PRINCIPAL}\n" in printed
    assert "No message was compared with it" in printed
    assert max(map(len, printed.splitlines())) <= 80
    wrong_origin = run("verify", "--proof", file, "--key", key, "--origin", "other.example/log")
    assert wrong_origin.exit_code == 1
    assert run("verify", "--proof", file).exit_code == 2


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: text.replace(signature(9, 1).hex(), signature(9, 0).hex()),
        lambda text: text.replace('"index":1', '"index":3'),  # beyond the batch
        lambda _: "[]",
        lambda _: "no json",
        lambda _: '{"checkpoint": 1}',
    ],
)
def test_forged_proof_is_refused(master: Path, tmp_path: Path, forge: Callable[[str], str]) -> None:
    text = run("prove", "--dir", master / "audit", digest(9, 1).hex()).stdout
    file = tmp_path / "proof.json"
    file.write_text(forge(text))
    assert file.read_text() != text
    result = run("verify", "--proof", file, "--key", master / "audit" / "audit.pub.pem")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr


def test_a_proof_that_is_no_text_is_refused(appliance: Path) -> None:
    proof = appliance / "proof.json"
    proof.write_bytes(b'{"form":"signer.v1 \xf0roof"}')
    result = run("verify", "--proof", proof, "--key", appliance / "audit" / "audit.pub.pem")
    assert result.exit_code == 1
    assert "signer: the proof" in result.stderr


def test_proof_by_record_into_a_file_under_an_early_checkpoint(
    master: Path, tmp_path: Path
) -> None:
    place = ("--dir", master / "audit", "--checkpoint", master / "early")
    output = tmp_path / "proof.json"
    (match,) = found("--dir", master / "audit", digest(1, 0).hex())
    result = run("prove", *place, "--record", match["intent"], "--item", 0, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    early = (master / "early").read_text()
    assert json.loads(output.read_text())["checkpoint"] == early
    later = run("prove", *place, digest(19, 0).hex())
    assert later.exit_code == 1
    assert "newer checkpoint" in later.stderr


def test_nothing_is_proven_without_item_or_checkpoint(appliance: Path) -> None:
    place = ("--dir", appliance / "audit")
    assert "nothing to prove" in run("prove", *place, "00" * 32).stderr
    assert run("prove", *place, "--record", 0).exit_code == 1
    lose_the_checkpoints(appliance)
    result = run("prove", *place, digest(9, 1).hex())
    assert result.exit_code == 1
    assert "no checkpoint" in result.stderr


# --- show and export -------------------------------------------------------------------------


def test_shows_the_last_records_and_one_in_full(master: Path) -> None:
    place = ("--dir", master / "audit")
    table = run("show", *place, "--last", 3)
    assert table.exit_code == 0, table.stderr
    assert "stop" in table.stdout
    assert "1 failed" in table.stdout
    assert "3 JWS, 01-001/records v1, for" in run("show", *place, "--last", 4).stdout
    listed = json.loads(run("show", *place, "--last", 3, "--json").stdout)
    assert len(listed) == 3
    one = json.loads(run("show", *place, 0, "--json").stdout)
    assert (one["seq"], one["kind"]) == (0, "start")
    assert "record 0, kind start, of 20" in run("show", *place, 0).stdout
    absent = run("show", *place, 10**6)
    assert absent.exit_code == 1
    assert "not in the log" in absent.stderr


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (("--kind", "start", "--kind", "stop"), ["start", "stop"]),
        (("--principal", PRINCIPAL, "--last", "3"), ["outcome", "intent", "outcome"]),
        (("--principal", "spiffe://x/other"), []),
        (("--facility", "01-001", "--kind", "intent", "--last", "2"), ["intent", "intent"]),
        (("--facility", "01-00", "--kind", "intent"), []),
        (("--key-name", "facilities/01-001/keys/records", "--last", "1"), ["outcome"]),
        (("--key-name", "facilities/01-001/keys/record"), []),
        (("--since", "2100-01-01"), []),
        (("--until", "2001-01-01T00:00:00+07:00"), []),
        (("--since", "2001-01-01", "--until", "2100-01-01T00:00:00", "--last", "1"), ["stop"]),
    ],
)
def test_shows_the_records_that_are_wanted(
    master: Path, words: tuple[str, ...], kinds: list[str]
) -> None:
    shown = json.loads(run("show", "--dir", master / "audit", "--json", *words).stdout)
    assert [record["kind"] for record in shown] == kinds


def test_find_is_narrowed_by_what_its_intent_is_about(master: Path) -> None:
    place = ("--dir", master / "audit", digest(7, 1).hex())
    assert len(found(*place, "--principal", PRINCIPAL, "--since", "2001-01-01")) == 1
    assert found(*place, "--facility", "01-002") == []


def test_exports_every_record_as_a_line(master: Path) -> None:
    place = ("--dir", master / "audit")
    lines = [json.loads(line) for line in run("export", *place).stdout.splitlines()]
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    intents = [line for line in lines if line["kind"] == "intent"]
    assert [line["items"][0] for line in intents] == [digest(b, 0).hex() for b in range(BATCHES)]
    part = run("export", *place, "--from", 3, "--to", 5).stdout.splitlines()
    assert [json.loads(line) for line in part] == lines[3:6]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"wrapping": [["w-1", "hsm-2", 1]]}, "wrapping key w-1 on hsm-2"),
        ({"wrapping_ended": [["w-1", "hsm-2"]]}, "wrapping key w-1 ended"),
        ({}, "nothing changed"),
    ],
    ids=str,
)
def test_a_record_of_wrapping_keys_is_said_in_words(fields: dict[str, Value], said: str) -> None:
    described = {"kind": "keys", "fields": {"changed": {}, "versions": [], **fields}}
    assert said in about(described)
