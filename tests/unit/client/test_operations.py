import json
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from signer.client import _operations as module
from signer.client._errors import DeadlineError, DeniedError, UnavailableError
from signer.client._operations import sign_operation
from signer.officers.approval import Signature, check_signature
from signer.v1 import keys_pb2
from signer.v1 import operations_pb2 as pb
from tests.unit.officers.people import certificate_of

PROPOSED = pb.OPERATION_STATE_PROPOSED


def operation(**members: Any) -> pb.Operation:
    made = pb.Operation(id="7", kind="activate", state=PROPOSED, officers=2)
    made.propose_time.FromSeconds(1_700_000_000)
    made.MergeFrom(pb.Operation(**members))
    return made


def answers(message: type[Any], **members: Any) -> Any:
    return lambda _: message(**members)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)


def test_prepare(stage: Any) -> None:
    stage.operations.answers["PrepareOperation"] = answers(
        pb.PrepareOperationResponse, content=b"c", difference=["+ a"], problems=["p", "q"]
    )
    with stage.client() as client:
        found = client.operations.prepare("activate", {"at": 7, "version": "v"}, b"list")
    assert found == (b"c", ("+ a",), ("p", "q"))
    [(_, request)] = stage.operations.asked
    assert (request.kind, request.attachment) == ("activate", b"list")
    assert json.loads(request.arguments) == {"at": 7, "version": "v"}


def test_what_changes_an_operation_says_how_it_is_then(stage: Any) -> None:
    signed = pb.OfficerSignature(officer="a", signature=b"s")
    signed.sign_time.FromSeconds(1_700_000_001)
    full = operation(
        signatures=[signed],
        content=b"c",
        difference=["+ a"],
        done=1,
        total=2,
        note="n",
        result='{"x":1}',
    )
    for name in ("Propose", "Approve", "Reject", "Retry", "Get"):
        message = getattr(pb, f"{name}OperationResponse")
        stage.operations.answers[f"{name}Operation"] = answers(message, operation=full)
    with stage.client() as client:
        found = [
            client.operations.propose(b"c", b"s", b"list"),
            client.operations.approve("7", b"t"),
            client.operations.reject("7", "why"),
            client.operations.retry("7"),
            client.operations.get("7"),
        ]
    assert len(set(map(repr, found))) == 1
    one = found[0]
    assert (one.id, one.kind, one.state, one.officers) == ("7", "activate", "PROPOSED", 2)
    assert one.proposed == datetime.fromtimestamp(1_700_000_000, UTC)
    assert one.expires is None
    assert one.signatures == (("a", b"s", datetime.fromtimestamp(1_700_000_001, UTC)),)
    assert (one.content, one.difference, one.done, one.total) == (b"c", ("+ a",), 1, 2)
    assert (one.note, one.result) == ("n", {"x": 1})
    requests = [request for _, request in stage.operations.asked]
    assert (requests[0].content, requests[0].signature) == (b"c", b"s")
    assert requests[0].attachment == b"list"
    assert (requests[1].id, requests[1].signature) == ("7", b"t")
    assert (requests[2].id, requests[2].reason) == ("7", "why")


def test_lists_follow_their_pages(stage: Any) -> None:
    def page(request: pb.ListOperationsRequest) -> pb.ListOperationsResponse:
        number = int(request.page_token or 0)
        return pb.ListOperationsResponse(
            operations=[operation(id=str(number))],
            next_page_token=str(number + 1) if number < 2 else "",
        )

    stage.operations.answers["ListOperations"] = page
    with stage.client() as client:
        assert [each.id for each in client.operations.list("PROPOSED")] == ["0", "1", "2"]
        with pytest.raises(ValueError, match="NONSENSE"):
            client.operations.list("NONSENSE")
        versions = list(client.list_key_versions("facilities/f/keys/k"))
    assert {request.state for _, request in stage.operations.asked} == {PROPOSED}
    assert [each.name[-1] for each in versions] == ["1", "2", "3"]
    assert [each.primary for each in versions] == [False, True, False]
    assert {each.token for each in versions} == {"t"}
    assert versions[0].deactivate_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert versions[0].destroy_at == datetime.fromtimestamp(1_700_000_001, UTC)


def test_a_long_policy_comes_in_pages(stage: Any) -> None:
    def page(request: pb.GetPolicyRequest) -> pb.GetPolicyResponse:
        parts = [("a.yaml", b"one"), ("b.yaml", b"two, "), ("b.yaml", b"and more")]
        number = int(request.page_token or 0)
        file = pb.PolicyFile(name=parts[number][0], content=parts[number][1])
        more = str(number + 1) if number < 2 else ""
        return pb.GetPolicyResponse(files=[file], next_page_token=more)

    stage.operations.answers["GetPolicy"] = page
    with stage.client() as client:
        assert client.operations.policy() == {"a.yaml": b"one", "b.yaml": b"two, and more"}


@pytest.mark.usefixtures("quick")
def test_certificates_go_in_calls_that_fit_while_the_rotation_waits(stage: Any) -> None:
    states = ["WAITING"]  # the last one is in force

    def take(request: pb.ImportCertificatesRequest) -> pb.ImportCertificatesResponse:
        assert request.ByteSize() < 4 * 1024 * 1024
        if states != ["WAITING"]:
            stage.refuse(grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_REFUSED")
        states.extend(["EXECUTING", "APPROVED"])
        return pb.ImportCertificatesResponse(operation=operation())

    def get(_: pb.GetOperationRequest) -> pb.GetOperationResponse:
        state = pb.OperationState.Value(f"OPERATION_STATE_{states[-1]}")
        if len(states) > 1:
            states.pop()
        return pb.GetOperationResponse(operation=operation(state=state))

    stage.operations.answers |= {"ImportCertificates": take, "GetOperation": get}
    sent = [bytes([number]) * 1_500_000 for number in range(5)]
    told: list[int] = []
    with stage.client() as client:
        assert client.operations.import_certificates("7", sent, told.append).id == "7"
        with pytest.raises(ValueError, match="at least one certificate"):
            client.operations.import_certificates("7", [])
    calls = [
        list(request.certificates)
        for name, request in stage.operations.asked
        if name == "ImportCertificates"
    ]
    assert [each for call in calls for each in call] == sent
    assert len(calls) == 3
    assert told == [2, 4, 5]


def test_officers_and_what_one_may_do(stage: Any) -> None:
    version = keys_pb2.KeyVersion(name="v", state=keys_pb2.KEY_STATE_SUSPENDED)
    stage.operations.answers |= {
        "ListOfficers": answers(
            pb.ListOfficersResponse,
            officers=[pb.Officer(principal="a", certificate=b"der")],
            needed={"activate": 3},
            origin="o",
        ),
        "SuspendKey": answers(pb.SuspendKeyResponse, key_versions=[version]),
        "SuspendFacility": answers(pb.SuspendFacilityResponse),
        "SuspendGroup": answers(pb.SuspendGroupResponse),
        "SuspendEverything": answers(pb.SuspendEverythingResponse),
        "MarkKeyCompromised": answers(pb.MarkKeyCompromisedResponse, key_versions=[version]),
        "ListSuspensions": answers(
            pb.ListSuspensionsResponse,
            suspensions=[pb.Suspension(scope="group", name="g", officer="a", reason="r")],
        ),
    }
    with stage.client() as client:
        assert client.operations.officers() == ((("a", b"der"),), {"activate": 3}, "o")
        [suspended] = client.operations.suspend_key("k", "r1")
        [ended] = client.operations.mark_compromised("k", "r2")
        client.operations.suspend_facility("f", "r3")
        client.operations.suspend_group("g", "r4")
        client.operations.suspend_everything("r5")
        assert client.operations.suspensions() == (("group", "g", None, "a", "r"),)
    assert (suspended.name, suspended.state) == (ended.name, ended.state) == ("v", "SUSPENDED")
    requests = dict(stage.operations.asked)
    assert (requests["SuspendKey"].name, requests["SuspendKey"].reason) == ("k", "r1")
    assert requests["MarkKeyCompromised"].reason == "r2"
    assert (requests["SuspendFacility"].facility, requests["SuspendGroup"].group) == ("f", "g")
    assert requests["SuspendEverything"].reason == "r5"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("end", ["DONE", "FAILED", "REJECTED", "EXPIRED", "WAITING"])
def test_waiting_ends_with_the_operation(stage: Any, end: str) -> None:
    states = iter(["PROPOSED", "APPROVED", "EXECUTING", end])

    def get(_: pb.GetOperationRequest) -> pb.GetOperationResponse:
        state = pb.OperationState.Value(f"OPERATION_STATE_{next(states)}")
        return pb.GetOperationResponse(operation=operation(state=state))

    stage.operations.answers["GetOperation"] = get
    told: list[str] = []
    with stage.client() as client:
        found = client.operations.wait("7", 60, lambda each: told.append(each.state))
    assert found.state == end
    assert told == ["PROPOSED", "APPROVED", "EXECUTING", end]


@pytest.mark.usefixtures("quick")
def test_waiting_outlasts_what_passes_and_nothing_else(stage: Any) -> None:
    refusals = iter([(grpc.StatusCode.UNAVAILABLE, "REGISTRY_UNAVAILABLE")] * 2)

    def get(_: pb.GetOperationRequest) -> pb.GetOperationResponse:
        if refusal := next(refusals, None):
            stage.refuse(*refusal)
        return pb.GetOperationResponse(operation=operation(state=pb.OPERATION_STATE_DONE))

    denied = stage.refusing(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED")
    away = stage.refusing(grpc.StatusCode.UNAVAILABLE, "REGISTRY_UNAVAILABLE")
    with stage.client() as client:
        stage.operations.answers["GetOperation"] = get
        assert client.operations.wait("7", 60).state == "DONE"
        assert len(stage.operations.asked) == 3
        stage.operations.answers["GetOperation"] = denied
        with pytest.raises(DeniedError):
            client.operations.wait("7", 60)
        stage.operations.answers["GetOperation"] = away
        with pytest.raises(UnavailableError):
            client.operations.wait("7", 0)
        stage.operations.answers["GetOperation"] = answers(
            pb.GetOperationResponse, operation=operation()
        )
        with pytest.raises(DeadlineError, match="still PROPOSED"):
            client.operations.wait("7", 0)


def pem(key: Any, password: bytes = b"") -> bytes:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65_537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["p256", "p384", "rsa", "ed25519"],
)
def test_a_signature_is_one_that_the_appliance_accepts(key: Any) -> None:
    officers = {"a": certificate_of("a", key=key).public_bytes(Encoding.DER)}
    at = datetime.now(UTC).timestamp()
    for signature in (
        sign_operation(b"bytes", pem(key)),
        sign_operation(b"bytes", pem(key, b"secret"), password=b"secret"),
    ):
        check_signature(b"bytes", Signature("a", signature, at), officers, at)


def test_a_key_that_cannot_be_used_is_never_quoted() -> None:
    locked = pem(ec.generate_private_key(ec.SECP256R1()), b"secret")
    for wrong in (b"no key", locked, locked[:80]):
        with pytest.raises(ValueError, match="not a private key in PEM") as error:
            sign_operation(b"bytes", wrong)
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__
        assert wrong.decode() not in str(error.value)
    with pytest.raises(ValueError, match="must be for ECDSA"):
        sign_operation(b"bytes", pem(dsa.generate_private_key(2048)))
