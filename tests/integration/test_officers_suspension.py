"""What one officer stops is stopped when his call returns; two must let it sign again."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from google.protobuf import message_factory

from signer.audit.format.checkpoint import NoteVerifier
from signer.client import ItemResult, SignerClient, SignerClientError
from signer.v1 import operations_pb2
from tests.integration import edge, outputs
from tests.integration.officers import Answer, Issuing, Office

A, B, STRICT = (f"facilities/{name}/keys/records" for name in ("01-001", "01-002", "strict"))
NOT_ACTIVE = "KEY_VERSION_NOT_ACTIVE"
MORE = "facilities/01-001/keys/more"
SLOW = "facilities/01-001/keys/records-rs256"
LATEST_SECONDS = 2.0
"""Slack for a busy machine: the goal is 100 ms."""


Stop = Callable[[SignerClient], object]


def stop(office: Office, act: Stop) -> tuple[float, float]:
    """Stops something; when the call began and when it had returned."""
    with office.client("officer-a") as client:
        client.operations.suspensions()  # the connection is there
        began = time.monotonic()
        act(client)
        return began, time.monotonic()


def none_begins(answers: list[Answer], key: str, returned: float) -> list[Answer]:
    """Nothing that began after the return has a signature; returns what was under way then."""
    mine = [answer for answer in answers if answer.key == key]
    late = [answer for answer in mine if answer.began > returned]
    assert late, f"nobody asked for {key} after the return"
    assert {answer.refused for answer in late} == {NOT_ACTIVE}
    assert {answer.signed for answer in late} == {0}
    under_way = [answer for answer in mine if answer.began < returned < answer.ended]
    assert {reason for answer in under_way for reason in answer.failed} <= {NOT_ACTIVE}
    assert {answer.refused for answer in under_way} <= {"", NOT_ACTIVE}
    return under_way


def resume(office: Office, target: str) -> None:
    assert office.do("resume", target=target).state == "DONE"


STOPS: dict[str, tuple[Stop, str, list[str], list[str]]] = {
    "key": (lambda c: c.operations.suspend_key(A, "test"), A, [A], [B, STRICT]),
    "version": (
        lambda c: c.operations.suspend_key(f"{A}/versions/1", "test"),
        f"{A}/versions/1",
        [A],
        [B, STRICT],
    ),
    "facility": (
        lambda c: c.operations.suspend_facility("01-001", "test"),
        "facilities/01-001",
        [A],
        [B, STRICT],
    ),
    "group": (
        lambda c: c.operations.suspend_group("01", "test"),
        "groups/01",
        [A, B, STRICT],
        ["facilities/moh/keys/digest"],
    ),
    "everything": (
        lambda c: c.operations.suspend_everything("test"),
        "everything",
        [A, B, STRICT],
        [],
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_stopped_under_load(office: Office, made: Any, name: str) -> None:
    act, target, stopped, others = STOPS[name]
    form = {"group": "DIGEST"}.get(name, "JWS")
    with (
        Issuing(office, stopped * 2, items=50) as issuing,
        Issuing(office, others, items=20, form=form) as going_on,
    ):
        for key in stopped:
            issuing.signing(key)
        began, returned = stop(office, act)
        for key in stopped:
            issuing.wait(lambda a: a.key == key and a.began > returned, "it asks again")
        for key in others:
            going_on.signing(key)
        if not others:
            checkpoints_go_on(office, made)
        still_stopped = time.monotonic()
        with pytest.raises(SignerClientError, match="another officer must approve it"):
            one_alone(office, target)
        for key in stopped:
            refused = issuing.wait(
                lambda a: a.key == key and a.began > still_stopped, "it asks again"
            )
            assert refused.refused == NOT_ACTIVE
        suspended = list(issuing.answers)
        resume(office, target)
        for key in stopped:
            issuing.signing(key)
    assert going_on.refusals() == {}
    cut = [each for key in stopped for each in none_begins(suspended, key, returned)]
    last = max((each.ended for each in suspended if each.signed), default=began)
    print(
        f"\n{name}: returned after {(returned - began) * 1000:.0f} ms, {len(cut)} calls under way,"
        f" {sum(sum(each.failed.values()) for each in cut)} of their items stopped,"
        f" the last signature {(last - returned) * 1000:+.0f} ms from the return"
    )
    assert returned - began < LATEST_SECONDS


def one_alone(office: Office, target: str) -> None:
    """Officer a tries to have it signing again without anybody."""
    proposed = office.propose("resume", target=target)
    try:
        office.approve(proposed.id, by="officer-a")
    finally:
        with office.client("officer-b") as client:
            told = client.operations.reject(proposed.id, "not alone")
        assert told.state == "REJECTED"


def checkpoints_go_on(office: Office, made: Any) -> None:
    """The audit key is nobody's to suspend: what was refused is under a signed checkpoint."""
    public = load_pem_public_key((made.dir / "audit" / "audit.pub.pem").read_bytes())
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    verifier = NoteVerifier.from_spki("signer/audit", spki)

    def size() -> int:
        with office.client("auditor") as client:
            return verifier.parse(client.get_checkpoint()).size

    before = size()
    edge.until(lambda: size() > before, "another checkpoint is signed")


def test_a_large_batch_is_cut_off_in_its_middle(office: Office, made: Any) -> None:
    payloads = [b"%d" % n for n in range(4096)]

    def call() -> list[ItemResult]:
        with office.client("issuer") as client:
            return client.sign_batch(SLOW, "MESSAGE", payloads, timeout=60)

    def queued() -> int:
        return operator.status().queued_items

    with office.client("operator") as operator, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(call)
        edge.until(lambda: 0 < queued() < 4000, "a part of it is signed")
        stop(office, lambda c: c.operations.suspend_key(SLOW, "test"))
        left = queued()
        items = answer.result(30)
    signed = [item for item in items if item.error is None]
    reasons = {item.error.reason for item in items if item.error is not None}
    assert (left, reasons) == (0, {NOT_ACTIVE})
    assert 0 < len(signed) < 4000
    for item in signed:
        outputs.check_raw(made.key("01-001/records-rs256"), item.signature, payloads[item.index])
    print(f"\n{len(signed)} of 4096 items were finished when it was stopped")
    resume(office, SLOW)


def test_a_part_of_a_name_is_refused_and_not_taken_for_what_it_begins(office: Office) -> None:
    parts = ("01-001/keys", "01-001/", "01", "facilities/01-001", "01-001/keys/records", "")
    with office.client("officer-a") as client:
        for part in parts:
            for act in (client.operations.suspend_facility, client.operations.suspend_group):
                if (act, part) == (client.operations.suspend_group, "01"):
                    continue  # this one is a group
                with pytest.raises(SignerClientError) as refused:
                    act(part, "a typing mistake")
                assert (refused.value.code, refused.value.reason) == (
                    "INVALID_ARGUMENT",
                    "FIELD_INVALID",
                )
        assert list(client.operations.suspensions()) == []


def test_a_suspension_outlives_a_restart(office: Office, made: Any) -> None:
    office.do("create-key", key=MORE, algorithm="ES256", activate=True)
    stop(office, lambda c: c.operations.suspend_key(MORE, "a key"))
    stop(office, lambda c: c.operations.suspend_group("01", "a group"))
    assert made.stop() == 0
    made.start()
    with office.client("issuer") as client:
        assert ends(client, MORE) == ends(client, B) == NOT_ACTIVE
    with office.client("officer-b") as client:
        [flag] = client.operations.suspensions()
    assert (flag.scope, flag.name, flag.reason) == ("group", "01", "a group")
    assert flag.officer == made.dev["clients"]["officer-a"]["principal"]
    resume(office, "groups/01")
    with office.client("issuer") as client:
        assert ends(client, B) == "ok"
        assert ends(client, MORE) == NOT_ACTIVE, "the key is suspended by itself"
        resume(office, MORE)
        assert ends(client, MORE) == "ok"


def ends(client: SignerClient, key: str) -> str:
    try:
        [item] = client.sign_batch(key, "JWS", [b"{}"])
    except SignerClientError as error:
        return error.reason
    return "ok" if item.error is None else item.error.reason


def test_what_was_signed_before_a_stop_is_not_given_out_after_it(office: Office, made: Any) -> None:
    """A repetition gets what a rotation left, and nothing that officers have stopped since."""
    key, one, other = "facilities/01-001/keys/repeated", str(uuid.uuid4()), str(uuid.uuid4())
    office.do("create-key", key=key, algorithm="ES256", activate=True)
    with edge.connect(made.dev) as issuer:

        def repeat(request_id: str) -> Any:
            return issuer.sign([b"{}"], key=key, request_id=request_id).signatures

        first = repeat(one)
        office.do("new-version", key=key)
        office.do("activate", version=f"{key}/versions/2", at=int(time.time()))
        second = repeat(other)
        office.do("deactivate", version=f"{key}/versions/1", at=int(time.time()))
        assert (repeat(one), repeat(other)) == (first, second)
        for act, target in (
            (lambda c: c.operations.suspend_facility("01-001", "test"), "facilities/01-001"),
            (lambda c: c.operations.suspend_group("01", "test"), "groups/01"),
            (lambda c: c.operations.suspend_everything("test"), "everything"),
        ):
            stop(office, act)
            edge.refused(lambda: repeat(one), NOT_ACTIVE)
            edge.refused(lambda: repeat(other), NOT_ACTIVE)
            resume(office, target)
            assert (repeat(one), repeat(other)) == (first, second)
        stop(office, lambda c: c.operations.suspend_key(key, "test"))
        edge.refused(lambda: repeat(other), NOT_ACTIVE)
        assert repeat(one) == first, "the version had ended before"
        stop(office, lambda c: c.operations.mark_compromised(f"{key}/versions/1", "it leaked"))
        edge.refused(lambda: repeat(one), NOT_ACTIVE)


def test_what_is_compromised_never_signs_again(office: Office) -> None:
    with Issuing(office, [STRICT, STRICT], items=200) as issuing:
        issuing.signing(STRICT)
        _, returned = stop(office, lambda c: c.operations.mark_compromised(STRICT, "it leaked"))
        issuing.wait(lambda a: a.began > returned, "it asks again")
    none_begins(issuing.answers, STRICT, returned)
    assert {each.state for each in office.versions(STRICT).values()} == {"COMPROMISED"}
    [problem] = office.problems("resume", target=STRICT)
    assert "has no suspended version" in problem
    [problem] = office.problems("activate", version=f"{STRICT}/versions/1")
    assert "is COMPROMISED: it cannot become ACTIVE" in problem
    with office.client("officer-a") as client, pytest.raises(SignerClientError) as refused:
        client.operations.suspend_key(STRICT, "again")
    assert refused.value.reason == "OPERATION_REFUSED"


def test_two_officers_who_stop_and_resume_at_once_leave_it_stopped(office: Office) -> None:
    stop(office, lambda c: c.operations.suspend_facility("01-002", "first"))
    proposed = office.propose("resume", target="facilities/01-002")
    office.approve(proposed.id)
    assert office.ended(proposed.id).state == "DONE"
    stop(office, lambda c: c.operations.suspend_key(B, "second"))
    stale = office.propose("resume", target=B)
    stop(office, lambda c: c.operations.mark_compromised(f"{B}/versions/1", "third"))
    office.approve(stale.id)
    told = office.ended(stale.id)
    assert told.state == "FAILED"
    assert "has changed since this was proposed" in told.note
    with office.client("issuer") as client:
        assert ends(client, B) == NOT_ACTIVE


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("issuer", "PERMISSION_DENIED", "POLICY_DENIED"),
        ("auditor", "PERMISSION_DENIED", "POLICY_DENIED"),
        ("operator", "PERMISSION_DENIED", "POLICY_DENIED"),
        ("stranger", "UNAUTHENTICATED", "PEER_UNKNOWN"),
    ],
)
def test_nobody_else_may_call_anything_of_it(made: Any, name: str, code: str, reason: str) -> None:
    methods = operations_pb2.DESCRIPTOR.services_by_name["OperationService"].methods
    assert len(methods) >= 15
    with edge.connect(made.dev, name) as stubs:
        for method in methods:
            if name == "auditor" and method.name.startswith(("Get", "List")):
                continue  # these only read
            call: grpc.UnaryUnaryMultiCallable[Any, bytes] = stubs.channel.unary_unary(
                f"/signer.v1.OperationService/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
            )
            request = message_factory.GetMessageClass(method.input_type)()
            refusal = edge.refused(lambda: call(request, timeout=10))
            assert (refusal.code, refusal.reason) == (code, reason), method.name


def test_an_auditor_reads_what_officers_do(office: Office) -> None:
    with office.client("auditor") as auditor, office.client("officer-a") as officer:
        theirs, ours = (client.operations for client in (officer, auditor))
        operations = list(ours.list())
        assert operations
        assert operations == list(theirs.list())
        assert ours.get(operations[0].id) == theirs.get(operations[0].id)
        assert ours.policy() == theirs.policy()
        assert ours.officers() == theirs.officers()
        assert ours.suspensions() == theirs.suspensions()


def test_the_log_accounts_for_all_of_it(office: Office) -> None:
    office.log_in_order()
