"""The daemon's audit log: what it answered is on record, provable, and said again when repeated."""

import hashlib
import json
import os
import resource
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.record import Record, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import SignerClientError
from signer.tools.dev.appliance import connect
from signer.v1 import keys_pb2, signing_pb2
from tests.commands import Done, signer
from tests.fork_server import fork_server
from tests.integration import edge

RECORDS = "facilities/01-001/keys/records"
SIGN_BATCH = "/signer.v1.SigningService/SignBatch"
DCC = (
    b'{"ver":"1.3.0","nam":{"fnt":"TEST"},"dob":"1990-01-01","v":[{"tg":"840539006",'
    b'"vp":"1119349007","mp":"EU/1/20/1528","ma":"ORG-100030215","dn":2,"sd":2,'
    b'"dt":"2022-03-04","co":"VN","is":"MOH","ci":"URN:UVCI:01:VN:0000"}]}'
)
"""A vaccination certificate of nobody."""
DCC_KEY = "facilities/moh/keys/dcc"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("audit")
    config = {"audit": {"mirror": str(folder / "mirror"), "origin": "test.example/log"}}
    shared = request.getfixturevalue("appliance")
    with edge.own(shared, folder, config=config, prepare=begin_anew) as made:
        yield made


def begin_anew(made: Any) -> None:
    """The log has another name than the one it was begun with: begin it again."""
    shutil.rmtree(made.dir / "audit")
    made.init()


@pytest.fixture(scope="module")
def stubs(own: Any) -> Iterator[edge.Stubs]:
    with edge.connect(own.dev) as connected:
        yield connected


def records(made: Any) -> list[Record]:
    reader = Reader(list_segments(made.dir / "audit"))
    return list(reader.records(0, reader.size))


def intents(made: Any, request_id: str) -> list[Record]:
    return [
        each
        for each in records(made)
        if each.kind is RecordKind.INTENT and each.fields["request_id"] == request_id
    ]


def new_id() -> str:
    return str(uuid.uuid4())


def left(stubs: edge.Stubs) -> int:
    """What the quota of a day still holds."""
    key = stubs.keys.GetKey(keys_pb2.GetKeyRequest(name=RECORDS), timeout=edge.SECONDS).key
    return min(int(quota.remaining) for quota in key.quotas if quota.window_seconds == 86_400)


def proven(made: Any, output: Path, proof: Path) -> bool:
    """Whether the proof of an output can be had; it can once a checkpoint covers it."""
    done = signer("audit", "prove", "--config", made.dir / "signer.yaml", "--file", output)
    proof.write_text(done.out)
    return done.code == 0


# --- on record ---------------------------------------------------------------------------------

SAMPLES = {
    "MESSAGE": (RECORDS, b"a message"),
    "JWS": (RECORDS, b'{"dose":1}'),
    "COSE_SIGN1": (RECORDS, b"a payload"),
    "HCERT": (DCC_KEY, DCC),
    "DIGEST": ("facilities/moh/keys/digest", hashlib.sha256(b"d").digest()),
    "CMS": ("facilities/moh/keys/documents", b"a document"),
    "PS256": ("facilities/01-001/keys/records-rsa", b"a message"),
    "EdDSA": ("facilities/01-001/keys/records-ed25519", b"a message"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_what_was_answered_is_found_and_proven_offline(
    own: Any, stubs: edge.Stubs, tmp_path: Path, name: str
) -> None:
    key, payload = SAMPLES[name]
    wanted = name if name.isupper() and name != "PS256" else "MESSAGE"
    response = stubs.sign([payload], key=key, format=f"FORMAT_{wanted}")
    output, proof = tmp_path / "output", tmp_path / "proof.json"
    output.write_bytes(response.signatures[0])
    found = signer("audit", "find", "--config", own.dir / "signer.yaml", "--file", output, "--json")
    assert found.code == 0, found.err
    [match] = json.loads(found.out)
    assert match["key_version"] == response.key_version
    assert match["request_id"] == ""  # the caller gave none
    edge.until(lambda: proven(own, output, proof), "a checkpoint covers the signature")
    key_file = shutil.copy(own.dir / "audit" / "audit.pub.pem", tmp_path)
    checked = signer("audit", "verify", "--proof", proof, "--key", key_file)
    assert checked.code == 0, checked.err
    bent = proof.read_text().replace('"leaf":"', '"leaf":"00', 1)
    proof.write_text(bent)
    assert signer("audit", "verify", "--proof", proof, "--key", key_file).code == 1


def test_what_was_never_signed_is_not_found(own: Any) -> None:
    config = own.dir / "signer.yaml"
    assert (
        signer("audit", "find", "--config", config, hashlib.sha256(b"never").hexdigest()).code == 1
    )


def test_the_whole_log_verifies_while_it_grows(own: Any, stubs: edge.Stubs) -> None:
    for _ in range(20):
        stubs.sign([b"{}"] * 50)
    done = signer("audit", "verify", "--config", own.dir / "signer.yaml")
    assert done.code == 0, done.err


def test_checkpoints_are_shipped_to_the_mirror(own: Any, stubs: edge.Stubs) -> None:
    stubs.sign()
    size = records(own)[-1].seq + 1
    mirror = own.dir.parent / "mirror" / "newest"
    edge.until(
        lambda: mirror.exists() and int(mirror.read_text().splitlines()[1]) >= size,
        "the mirror has a checkpoint of all",
    )


def test_the_policy_in_force_is_kept_by_its_hash(own: Any, stubs: edge.Stubs) -> None:
    request_id = new_id()
    stubs.sign(request_id=request_id)
    [intent] = intents(own, request_id)
    sha256 = intent.fields["policy"]
    assert isinstance(sha256, bytes)
    kept = (own.dir / "audit" / "policies" / sha256.hex()).read_bytes()
    assert hashlib.sha256(kept).digest() == sha256
    assert (own.dir / "policy" / "policy.yaml").read_bytes() in kept


def test_the_audit_key_is_out_of_reach(own: Any, stubs: edge.Stubs) -> None:
    name = "facilities/_audit/keys/checkpoint"
    assert edge.refused(lambda: stubs.sign(key=name)).reason == "FIELD_INVALID"
    with edge.connect(own.dev, "auditor") as auditor:
        listed = auditor.keys.ListKeys(
            keys_pb2.ListKeysRequest(page_size=1000), timeout=edge.SECONDS
        )
    assert listed.keys
    assert name not in {key.name for key in listed.keys}


def test_metrics_tell_of_the_log(own: Any) -> None:
    _, text = own.get("/metrics")
    values = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )
    for name in (
        "signer_audit_records_total",
        "signer_audit_commit_duration_seconds_count",
        "signer_audit_checkpoint_timestamp_seconds",
        "signer_disk_free_bytes",
    ):
        assert float(values[name]) > 0, name
    assert float(values["signer_audit_open_intents"]) == 0
    assert 'signer_stage_duration_seconds_count{stage="audit"}' in values


# --- said again --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MESSAGE", "JWS", "COSE_SIGN1", "HCERT", "CMS"])
def test_a_repetition_gives_the_same_bytes_and_costs_nothing(
    own: Any, stubs: edge.Stubs, name: str
) -> None:
    key, payload = SAMPLES[name]
    request_id = new_id()
    batch: dict[str, Any] = {"key": key, "format": f"FORMAT_{name}", "request_id": request_id}
    first = stubs.sign([payload, b"not a payload"], **batch)
    before = left(stubs)
    again = stubs.sign([payload, b"not a payload"], **batch)
    assert again == first
    assert left(stubs) == before
    assert len(intents(own, request_id)) == 1


@pytest.mark.parametrize(
    "change", [{"payloads": [b"{}", b"{}"]}, {"format": "FORMAT_MESSAGE"}, {"key": edge.RSA}]
)
def test_an_id_of_another_request_is_refused(stubs: edge.Stubs, change: dict[str, Any]) -> None:
    request_id = new_id()
    stubs.sign(request_id=request_id)
    edge.refused(lambda: stubs.sign(request_id=request_id, **change), "REQUEST_ID_REUSED")


def test_of_two_at_once_one_signs_and_both_get_the_same(own: Any, stubs: edge.Stubs) -> None:
    request_id = new_id()
    payloads = [os.urandom(20) for _ in range(4096)]
    start, answers = threading.Barrier(4), []

    def call() -> None:
        start.wait()
        answers.append(stubs.sign(payloads, format="FORMAT_MESSAGE", request_id=request_id))

    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            threads.submit(call)
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    assert len(intents(own, request_id)) == 1


def test_what_failed_as_a_whole_may_be_signed_under_its_id(own: Any, stubs: edge.Stubs) -> None:
    request_id = new_id()
    payloads = [os.urandom(20) for _ in range(20)]
    batch: dict[str, Any] = {"format": "FORMAT_MESSAGE", "request_id": request_id}
    refusal = edge.refused(lambda: stubs.sign([b"x"] * 5000, **batch))
    assert refusal.reason == "FIELD_INVALID"
    assert len(stubs.sign(payloads, **batch).signatures) == 20
    assert len(intents(own, request_id)) == 1


def test_after_a_restart_the_same_bytes_and_the_same_quota(
    make_appliance: Callable[..., Any],
) -> None:
    made = make_appliance()
    request_id = new_id()
    batch: dict[str, Any] = {"format": "FORMAT_MESSAGE", "request_id": request_id}
    with edge.connect(made.dev) as stubs:
        first = stubs.sign([b"a", b"b"], **batch)
        used = left(stubs)
    assert made.stop() == 0
    made.start()
    with edge.connect(made.dev) as stubs:
        assert left(stubs) == used
        assert stubs.sign([b"a", b"b"], **batch) == first
        assert left(stubs) == used
        refusal = edge.refused(lambda: stubs.sign([b"a", b"c"], **batch))
        assert refusal.reason == "REQUEST_ID_REUSED"


def test_refusals_are_said_again_as_they_were_though_the_rules_have_changed(
    make_appliance: Callable[..., Any],
) -> None:
    made = make_appliance(
        policy=lambda policy: policy["profiles"]["records"].update(
            content={"required_members": ["dose"]}, formats=["JWS"]
        )
    )
    request_id = new_id()
    payloads = [b'{"dose":1}', b'{"name":1}', b"no JSON"]
    with edge.connect(made.dev) as stubs, edge.connect(made.dev, "operator") as operator:
        first = stubs.sign(payloads, request_id=request_id)
        assert {edge.read(each).reason for each in first.failures.values()} == {
            "CONTENT_DENIED",
            "PAYLOAD_INVALID",
        }
        made.edit_policy(
            lambda policy: policy["profiles"]["records"].update(
                content={"required_members": ["name"]}
            )
        )
        edge.reload(operator)
        again = stubs.sign(payloads, request_id=request_id)
        assert again.signatures == first.signatures
        # The reason is on record; its message is the one that the payload gets now.
        assert edge.read(again.failures[1]).reason == "CONTENT_DENIED"
        assert again.failures[2].message == first.failures[2].message
        assert stubs.sign(payloads).failures.keys() == {0, 2}


# --- items that fail -----------------------------------------------------------------------------


def test_bad_payloads_cost_quota_and_no_room_in_the_log(own: Any, stubs: edge.Stubs) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in (own.dir / "audit").glob("*.log"))

    def one_good_and(bad: int) -> tuple[int, int]:
        room, quota = size(), left(stubs)
        assert len(stubs.sign([b"{}", *[b""] * bad]).failures) == bad
        return size() - room, quota - left(stubs)

    alone, charged = one_good_and(0)
    assert charged == 1
    full, charged = one_good_and(4095)
    assert charged == 4096
    assert full < alone + 1024
    quota = left(stubs)
    assert len(stubs.sign([b""] * 4096).failures) == 4096
    assert quota - left(stubs) == 4096


def test_answers_name_their_record(own: Any, stubs: edge.Stubs) -> None:
    batch = signing_pb2.SignBatchRequest(
        key=RECORDS, format="FORMAT_JWS", payloads=[b"{}", b""], request_id=new_id()
    )
    alone = stubs.signing.SignBatch(batch, timeout=edge.SECONDS)
    [intent] = intents(own, batch.request_id)
    assert alone.audit_record == intent.seq
    requests = [signing_pb2.SignStreamRequest(tag=5, batch=batch)]
    [streamed] = stubs.signing.SignStream(iter(requests), timeout=edge.SECONDS)
    assert streamed.batch == alone
    assert not stubs.sign([b""]).HasField("audit_record")
    with connect(own.dev, "issuer") as client:
        results = client.sign_batch(RECORDS, "JWS", [b"{}", b""])
        [refused] = client.sign_batch(RECORDS, "JWS", [b""])
    record = next(each for each in records(own) if each.seq == results[0].audit_record)
    assert record.kind is RecordKind.INTENT
    assert record.fields["asked"] == 2
    assert results[1].audit_record == record.seq
    assert refused.audit_record is None


# --- what else is on record, and what stops ------------------------------------------------------


def test_starts_denials_policies_keys_and_ends_are_on_record(
    make_appliance: Callable[..., Any],
) -> None:
    made = make_appliance()
    with edge.connect(made.dev) as stubs, edge.connect(made.dev, "operator") as operator:
        for _ in range(3):
            edge.refused(lambda: stubs.sign(key="facilities/nguyen-van-a/keys/k"))
        made.edit_policy(
            lambda policy: policy["groups"].update({"42": {"name": "N", "clients": []}})
        )
        edge.reload(operator)
    nobody = edge.issue(made.dir, edge.client_authority(made), "nobody")
    fingerprint = edge.fingerprint(nobody.certificate.read_bytes()).hex()
    with edge.connect_with(made.dev, nobody.certificate, nobody.key) as stubs:
        edge.refused(stubs.sign)
    assert made.stop() == 0
    written = records(made)
    kinds = Counter(each.kind for each in written)
    assert (kinds[RecordKind.START], kinds[RecordKind.STOP], kinds[RecordKind.POLICY]) == (1, 1, 2)
    assert kinds[RecordKind.TOKEN] >= 1  # a worker has logged in
    assert written[-1].kind is RecordKind.STOP
    [denials] = [each for each in written if each.kind is RecordKind.DENIALS]
    issuer = made.dev["clients"]["issuer"]["principal"]
    # Of a name that does not exist, which may say anything, there is a hash.
    hashed = hashlib.sha256(b"facilities/nguyen-van-a/keys/k").hexdigest()
    row = [issuer, f"sha256:{hashed}", "POLICY_DENIED", 3, SIGN_BATCH, "", ""]
    rows: Any = denials.fields["denials"]
    assert row in rows
    [[caller, key, reason, calls, method, role, peer]] = [row for row in rows if row[0] != issuer]
    assert caller == f"certificate {nobody.serial:x} with SHA-256 {fingerprint}"
    assert (key, reason, calls, method, role) == ("", "PEER_UNKNOWN", 1, SIGN_BATCH, "")
    assert peer.startswith("ipv4:127.0.0.1:")
    assert "nguyen" not in made.log.read_text()
    assert signer("audit", "verify", "--config", made.dir / "signer.yaml").code == 0


def test_a_log_that_cannot_be_written_stops_signing_until_a_restart(
    make_appliance: Callable[..., Any],
) -> None:
    made = make_appliance()
    segment = next((made.dir / "audit").glob("*.log"))
    answered = []
    with edge.connect(made.dev) as stubs:
        answered += stubs.sign([b"before"], format="FORMAT_MESSAGE").signatures
        # From here on the kernel refuses to make the file longer than a little more.
        limit = segment.stat().st_size + 50_000
        resource.prlimit(made.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        batch: dict[str, Any] = {"format": "FORMAT_MESSAGE", "request_id": new_id()}
        edge.refused(lambda: stubs.sign([b"m"] * 2000, **batch), "AUDIT_UNAVAILABLE")
        assert edge.refused(stubs.sign).reason == "AUDIT_UNAVAILABLE"
        edge.until(lambda: made.get("/readyz")[0] == 503, "readyz tells")
        assert "audit log" in made.get("/readyz")[1]
        with made.client("operator") as client:
            edge.until(lambda: client.health() == "NOT_SERVING", "health tells")
    assert made.stop() == 0
    made.start()
    with edge.connect(made.dev) as stubs:
        answered += stubs.sign([b"m"] * 2000, **batch).signatures
    digests = {hashlib.sha256(each).digest() for each in answered}
    assert digests == digests & signed(made)
    assert signer("audit", "verify", "--config", made.dir / "signer.yaml").code == 0


def signed(made: Any) -> set[bytes]:
    """SHA-256 of every signature of the log."""
    return {
        hashlib.sha256(each.column.item(index)).digest()
        for each in records(made)
        if each.kind is RecordKind.OUTCOME and each.column is not None
        for index in range(each.column.count)
    }


def served(made: Any) -> Done:
    return signer("serve", "--config", made.dir / "signer.yaml")


def test_a_log_that_was_cut_or_is_gone_ends_the_start(make_appliance: Callable[..., Any]) -> None:
    made = make_appliance()
    with edge.connect(made.dev) as stubs:
        stubs.sign()
    assert made.stop() == 0
    segment = next((made.dir / "audit").glob("*.log"))
    whole = segment.read_bytes()
    segment.write_bytes(whole[: len(whole) - 400])
    cut = served(made)
    assert cut.code == 1
    assert "not whole" in cut.err
    assert "Restore the missing files" in cut.err
    segment.unlink()
    gone = served(made)
    assert gone.code == 1
    assert "no audit log" in gone.err
    begun = signer(
        "init", "--join", "--without-log", "it is gone", "--config", made.dir / "signer.yaml"
    )
    assert begun.code == 1  # a checkpoint knows that there was one
    segment.write_bytes(whole)
    assert signer("audit", "verify", "--config", made.dir / "signer.yaml").code == 0


def test_an_override_goes_on_is_recorded_and_lasts(
    make_appliance: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_appliance(config={"audit": {"mirror": str(tmp_path / "mirror")}})
    with edge.connect(made.dev) as stubs:
        stubs.sign()
    assert made.stop() == 0
    segment = next((made.dir / "audit").glob("*.log"))
    whole = segment.read_bytes()
    segment.write_bytes(whole[: len(whole) - 1000])
    assert served(made).code == 1
    command = ["-m", "signer", "serve", "--override-audit-log"]
    command += ["--config", str(made.dir / "signer.yaml")]
    with made.log.open("a") as log:
        overriding = fork_server().start(command, stdout=log, stderr=log)
    try:
        edge.until(lambda: ready(made), "the daemon serves in spite of it")
    finally:
        overriding.terminate()
        assert overriding.wait(30) == 0
    kinds = Counter(each.kind for each in records(made))
    assert (kinds[RecordKind.RECOVERY], kinds[RecordKind.OVERRIDE]) == (1, 1)
    made.start()  # it is not measured by what was given up
    with edge.connect(made.dev) as stubs:
        assert stubs.sign().signatures
    assert made.stop() == 0
    assert signer("audit", "verify", "--config", made.dir / "signer.yaml").code == 0
    assert list((tmp_path / "mirror").glob("*.overridden"))  # kept as evidence


def ready(made: Any) -> bool:
    try:
        return bool(made.get("/readyz")[0] == 200)
    except OSError:
        return False


def test_a_log_is_begun_once(own: Any) -> None:
    again = signer("init", "--config", own.dir / "signer.yaml")
    assert again.code == 1
    assert "only once" in again.err


def test_the_client_repeats_a_job_under_its_id(own: Any) -> None:
    job = uuid.uuid4()
    payloads = [b"%d" % index for index in range(300)]
    with own.client() as client:
        first = [
            each.signature for each in client.sign(RECORDS, "MESSAGE", payloads, request_id=job)
        ]
        again = [
            each.signature for each in client.sign(RECORDS, "MESSAGE", payloads, request_id=job)
        ]
        assert first == again
        with pytest.raises(SignerClientError):
            client.sign_batch(RECORDS, "JWS", [b"{}"] * 5000)
