"""Who may sign operations: sets of officers, and one put in the place of another."""

import base64
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding

from signer.config.models import OperationsConfig
from signer.errors import CallError, OperatorError
from signer.officers.approval import officers_sha256
from signer.officers.kinds.officer_change import ChangeOfficers, ChangeOfficersKind, first_officers
from signer.officers.store import OperationState
from tests.unit.officers.opstage import CLINIC, DAY, START, Stage
from tests.unit.officers.people import (
    BEGINS,
    ENDS,
    OFFICERS,
    A,
    B,
    C,
    D,
    E,
    certificate_of,
    der_of,
    key_of,
    pem,
    pem_of,
)

NOW = datetime.fromtimestamp(START, UTC)
CLIENT = "spiffe://signer.example/ministry"


def test_an_officer_is_added_and_another_removed(stage: Stage) -> None:
    members: dict[str, Any] = {"add": [pem_of(D)], "remove": [C]}
    assert stage.prepare("officers", **members).difference == [
        f"- {C}",
        f"+ {D}, certificate b of CN=officer d, valid until 2060-01-01T00:00:00Z",
    ]
    operation = stage.done("officers", **members)
    assert operation.result == {"officers": [A, B, D]}
    assert stage.emergency.officers().keys() == {A, B, D}
    assert stage.log.control.officers == dict(stage.emergency.officers())
    with pytest.raises(CallError, match=f"{C} is not an officer"):
        stage.propose("create-key", by=C, **KEY)
    stage.approve(stage.propose("create-key", **KEY).id, by=D)
    assert stage.states(CLINIC) == ["ACTIVE"]


KEY: dict[str, Any] = {"key": CLINIC, "algorithm": "ES256", "activate": True}


def test_a_new_certificate_of_an_officer(stage: Stage) -> None:
    new = certificate_of(C, key=key_of("another"))
    text = f"{C}, certificate b of CN=officer c, valid until 2060-01-01T00:00:00Z"
    lines = stage.prepare("officers", add=[pem(new)]).difference
    assert lines == [f"~ {text}", f"  before: {text}"]
    stage.done("officers", add=[pem(new)])
    assert stage.emergency.officers()[C] == new.public_bytes(Encoding.DER)
    with pytest.raises(CallError, match="not by"):
        stage.approve(stage.propose("create-key", **KEY).id, by=C)


SHORT = NOW + timedelta(days=3)  # when the certificates of some officers end


def ending(*who: str) -> dict[str, bytes]:
    """Officers A, B and C, of whom some have certificates that end soon."""
    short = {each: certificate_of(each, ends=SHORT).public_bytes(Encoding.DER) for each in who}
    return {**OFFICERS, **short}


@pytest.fixture
def staged(tmp_path: Path, template: Path) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(officers: Mapping[str, bytes], **more: Any) -> Stage:
        made.append(Stage(tmp_path / str(len(made)), template, officers=officers, **more))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


def renewed(*who: str) -> list[str]:
    return [pem(certificate_of(each, key=key_of(f"new {each}"))) for each in who]


@pytest.mark.parametrize(("proposer", "approver"), [(A, B), (B, A)])
def test_one_valid_officer_is_enough_to_renew_what_has_ended(
    staged: Callable[..., Stage], proposer: str, approver: str
) -> None:
    stage = staged(ending(B, C))
    stage.clock.forward(4 * DAY)
    lines = stage.prepare("officers", add=renewed(B), by=A).difference
    assert lines[0] == f"! the certificate of {C} has ended: renew it, or remove the officer"
    with pytest.raises(CallError, match="its key only signs an operation that renews"):
        stage.propose("create-key", by=B, **KEY)
    identity = stage.propose("officers", by=proposer, add=renewed(B)).id
    stage.approve(identity, by=approver)
    assert stage.operation(identity).state is OperationState.DONE
    assert stage.log.control.problems == ()
    assert stage.log.control.officers == stage.emergency.officers()
    identity = stage.propose("officers", by=A, add=renewed(C)).id
    stage.approve(identity, by=C)  # with the key of the certificate that has ended
    assert stage.operation(identity).state is OperationState.DONE
    assert stage.log.control.problems == ()


def test_a_renewal_changes_nothing_else(staged: Callable[..., Stage]) -> None:
    stage = staged(ending(B))
    stage.clock.forward(4 * DAY)
    changes: tuple[dict[str, Any], ...] = (
        {"add": [*renewed(B), pem_of(D)]},  # somebody is added
        {"remove": [B]},
        {"add": [*renewed(B), *renewed(C)]},  # another certificate is still valid
        {"add": renewed(C)},
    )
    for members in changes:
        identity = stage.propose("officers", by=A, **members).id
        with pytest.raises(CallError, match="its key only signs an operation that renews"):
            stage.approve(identity, by=B)
        assert stage.operation(identity).state is OperationState.PROPOSED


def test_without_a_valid_officer_nothing_is_renewed(staged: Callable[..., Stage]) -> None:
    stage = staged(ending(A, B, C))
    stage.clock.forward(4 * DAY)
    identity = stage.propose("officers", by=A, add=renewed(A)).id
    stage.approve(identity, by=B)
    assert stage.operation(identity).state is OperationState.PROPOSED
    stage.approve(identity, by=C)
    assert stage.operation(identity).state is OperationState.PROPOSED
    assert stage.log.control.problems == ()


def test_a_third_officer_who_is_valid_completes_a_renewal(staged: Callable[..., Stage]) -> None:
    stage = staged(ending(A, B))
    stage.clock.forward(4 * DAY)
    identity = stage.propose("officers", by=A, add=renewed(A, B)).id
    stage.approve(identity, by=B)
    assert stage.operation(identity).state is OperationState.PROPOSED
    stage.approve(identity, by=C)
    assert stage.operation(identity).state is OperationState.DONE
    assert stage.log.control.problems == ()


def test_ends_are_shown_and_warned_of(staged: Callable[..., Stage]) -> None:
    stage = staged(ending(B, C))
    short = certificate_of(D, ends=NOW + timedelta(days=9, hours=1))
    lines = stage.prepare("officers", add=[pem(short)]).difference
    assert lines[0] == f"! the certificate of {D} ends in 9 days"
    assert lines[1].endswith("valid until 2026-01-14T01:00:00Z")
    stage.clock.forward(4 * DAY)
    lines = stage.prepare("officers", remove=[C]).difference
    assert lines[:2] == [
        "! only 1 officer has a valid certificate after this; operations need 2",
        f"! the certificate of {B} has ended: renew it, or remove the officer",
    ]
    [problem] = stage.problems("officers", remove=[A])
    assert problem == "no officer would have a valid certificate: nobody could sign anything"


def test_a_certificate_that_ends_between_signature_and_record_counts(
    staged: Callable[..., Stage],
) -> None:
    """The log's clock is later than the one that judged the signature."""
    stage = staged(ending(B))
    stage.clock.time = SHORT.timestamp() - 60
    content = stage.prepare("create-key", by=B, **KEY).content
    stage.clock.time = SHORT.timestamp()
    take = stage.log.append

    def late(*arguments: Any, **named: Any) -> int:
        stage.clock.forward(0.5)
        return int(take(*arguments, **named))

    stage.log.append = late
    stage.put(content, by=B)
    assert stage.log.control.problems == ()


def test_sets_that_come_back_are_recorded_in_their_order(stage: Stage) -> None:
    """Officers A, B, C; without C; with C again; and on from there."""
    steps: list[dict[str, Any]] = [{"remove": [C]}, {"add": [pem_of(C)]}, {"remove": [C]}]
    for members in steps:
        stage.done("officers", **members)
    stage.done("officers", add=[pem_of(D)])
    assert stage.log.control.officers == {who: der_of(who) for who in (A, B, D)}
    assert stage.log.control.problems == ()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: certificate_of(D, ends=NOW - timedelta(days=1)), "has expired"),
        (lambda: certificate_of(D, begins=NOW + timedelta(days=1)), "is not valid yet"),
        (lambda: certificate_of(D, ca=True), "is that of an authority"),
        (lambda: certificate_of(D, uris=[f"{D}\0.x"]), "is not a principal"),
        (lambda: certificate_of(D, uris=[]), "exactly one URI; this one has 0"),
        (lambda: certificate_of(D, uris=[D, E]), "exactly one URI; this one has 2"),
        (lambda: certificate_of(D, uris=["https://x/d"]), "is not a principal"),
        (lambda: certificate_of(D, uris=["spiffe://x/d\n[31m"]), "is not a principal"),
        (lambda: certificate_of(D, key=key_of(A)), f"{A} and {D} have the same key"),
        (lambda: certificate_of(CLIENT), f"{CLIENT} is a client in the policy"),
    ],
)
def test_an_officer_is_refused(stage: Stage, make: Callable[[], Any], told: str) -> None:
    [problem] = stage.problems("officers", add=[pem(make())])
    assert told in problem


def test_what_else_is_refused(stage: Stage) -> None:
    assert "is not an X.509 certificate" in stage.problems("officers", add=["x"])[0]
    assert stage.problems("officers", remove=[D, E]) == [
        f"remove: {D} is not an officer",
        f"remove: {E} is not an officer",
    ]
    assert "1 officer is left; operations need 2" in stage.problems("officers", remove=[B, C])[0]
    two = [pem_of(D), pem(certificate_of(D, key=key_of("other")))]
    assert "two certificates are for one officer" in stage.problems("officers", add=two)[0]


def test_more_officers_are_needed_where_one_kind_needs_more(tmp_path: Path, template: Path) -> None:
    needed = OperationsConfig(kinds={"destroy": 3})
    stage = Stage(tmp_path / "stage", template, needed=needed)
    assert "2 officers are left; operations need 3" in stage.problems("officers", remove=[C])[0]
    stage.close()


def test_sets_that_the_log_could_not_hold(stage: Stage) -> None:
    told = {f"{A}{n}": base64.b64encode(der_of(A)).decode() for n in range(700)}
    since = stage.context.state.officers_since
    details = ChangeOfficers(
        officers=told, replaces=officers_sha256(OFFICERS), in_force_since=since
    )
    problems = ChangeOfficersKind().problems(details, stage.context)
    assert any(problem.endswith("bytes, at most 196608") for problem in problems)


@pytest.mark.parametrize("changed", [{"add": ["x"]}, {"remove": [C]}, {"replaces": "0" * 64}])
def test_what_an_officer_has_written_otherwise(stage: Stage, changed: dict[str, Any]) -> None:
    good = stage.propose("officers", remove=[C]).proposal.details
    with pytest.raises(CallError, match="OPERATION_REFUSED"):
        stage.put(stage.crafted("officers", **{**good, **changed}))
    other = base64.b64encode(der_of(D)).decode()
    with pytest.raises(CallError, match="is for another principal"):
        stage.put(stage.crafted("officers", **{**good, "officers": {A: other, B: other}}))


def test_officers_who_were_changed_since(stage: Stage) -> None:
    identity = stage.propose("officers", remove=[C]).id
    stage.done("officers", add=[pem_of(D)])
    stage.approve(identity)
    assert "the officers have changed since" in stage.operation(identity).note
    assert C in stage.emergency.officers()


def test_a_proposer_who_was_removed_since(stage: Stage) -> None:
    identity = stage.propose("create-key", by=C, **KEY).id
    stage.done("officers", remove=[C])
    stage.approve(identity, by=A)
    assert stage.operation(identity).state is OperationState.PROPOSED
    stage.approve(identity, by=B)
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    assert f"its proposer {C} has not validly signed" in operation.note
    assert stage.token.keys == {}


# --- the first ones ----------------------------------------------------------------------------


def test_the_first_officers_are_read_by_file(stage: Stage) -> None:
    del stage
    files = {"a.pem": pem_of(A).encode(), "b.der": der_of(B)}
    assert first_officers(files) == {A: der_of(A), B: der_of(B)}


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (b"x", "b.pem: the file is not an X.509"),
        (pem(certificate_of(A, key=key_of("y"))).encode(), "b.pem: .*another certificate"),
        (pem(certificate_of(B, key=key_of(A))).encode(), "have the same key"),
        (pem(certificate_of(B, uris=[])).encode(), "b.pem: .*exactly one URI"),
        (pem(certificate_of(B, uris=["urn:x"])).encode(), "b.pem: .*is not a principal"),
        (pem(certificate_of(B, ends=NOW - timedelta(days=1))).encode(), "b.pem: .*has expired"),
    ],
)
def test_first_officers_are_refused(second: bytes, told: str) -> None:
    with pytest.raises(OperatorError, match=told):
        first_officers({"a.pem": pem_of(A).encode(), "b.pem": second})


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_officers_may_have_keys_of_three_kinds(kind: str) -> None:
    key: Any = ed25519.Ed25519PrivateKey.generate()
    if kind == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    name = x509.Name.from_rfc4514_string("CN=d")
    hashed = None if kind == "ed25519" else hashes.SHA256()
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(D)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, BEGINS, ENDS)
    certificate = builder.add_extension(san, critical=False).sign(key, hashed)
    assert first_officers({"d.pem": pem(certificate).encode()}).keys() == {D}


def test_a_key_with_which_nobody_signs_operations() -> None:
    key = x25519.X25519PrivateKey.generate()
    name = x509.Name.from_rfc4514_string("CN=d")
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(D)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, BEGINS, ENDS)
    certificate = builder.add_extension(san, critical=False).sign(key_of(A), hashes.SHA256())
    with pytest.raises(OperatorError, match="must be ECDSA, RSA or Ed25519"):
        first_officers({"d.pem": pem(certificate).encode()})
