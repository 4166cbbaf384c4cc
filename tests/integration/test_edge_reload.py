"""Policy and certificates are read again without a restart: all of it, or nothing."""

import json
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from signer.tools.dev import pki
from signer.v1 import keys_pb2
from tests.integration import edge

SERVER_FILES = ("server.pem", "server.key")


@pytest.fixture(scope="module")
def mine(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("reloaded")
    with edge.own(appliance, folder) as made:
        yield made


@pytest.fixture(scope="module")
def issuing(mine: Any) -> Iterator[edge.Stubs]:
    with edge.connect(mine.dev) as stubs:
        yield stubs


@pytest.fixture(scope="module")
def operating(mine: Any) -> Iterator[edge.Stubs]:
    with edge.connect(mine.dev, "operator") as stubs:
        yield stubs


@pytest.fixture(autouse=True)
def as_it_was(mine: Any, operating: edge.Stubs) -> Iterator[None]:
    """Puts policy and server certificate back after each test, whatever it did."""
    changed = ("signer.yaml", "policy/policy.yaml", *(f"pki/{name}" for name in SERVER_FILES))
    files = [mine.dir / name for name in changed]
    before = {path: path.read_bytes() for path in files}
    yield
    for path, content in before.items():
        path.write_bytes(content)
    edge.reload(operating)


def limit(mine: Any, items: int) -> None:
    """Changes the policy: so many items a batch for 01-001."""
    mine.edit_policy(
        lambda policy: policy["facilities"]["01-001"].update({"max_batch_items": items})
    )


def limit_in_force(issuing: edge.Stubs) -> int:
    request = keys_pb2.GetKeyRequest(name=edge.RECORDS)
    return int(issuing.keys.GetKey(request, timeout=edge.SECONDS).key.max_batch_items)


def test_nothing_has_changed(operating: edge.Stubs) -> None:
    answer = edge.reload(operating)
    assert (answer.policy_changed, answer.certificate_changed) == (False, False)
    assert answer.policy_sha256 == edge.status(operating).policy_sha256


def test_a_changed_policy_is_in_force_at_once(
    mine: Any, issuing: edge.Stubs, operating: edge.Stubs
) -> None:
    limit(mine, 2)
    assert len(issuing.sign([b"{}"] * 3).signatures) == 3  # not yet read
    pid, before = mine.process.pid, edge.status(operating).policy_sha256
    answer = edge.reload(operating)
    assert answer.policy_changed
    assert answer.policy_sha256 == edge.status(operating).policy_sha256 != before
    refusal = edge.refused(lambda: issuing.sign([b"{}"] * 3))
    assert (refusal.reason, refusal.fields) == ("FIELD_INVALID", ("payloads",))
    assert len(issuing.sign([b"{}"] * 2).signatures) == 2
    assert mine.process.pid == pid
    assert mine.running
    _, metrics = mine.get("/metrics")
    assert f'signer_config_info{{sha256="{answer.policy_sha256}"}} 1.0' in metrics


def test_sighup_does_the_same(mine: Any, issuing: edge.Stubs) -> None:
    limit(mine, 7)
    assert limit_in_force(issuing) == 4096
    mine.process.send_signal(signal.SIGHUP)
    edge.until(lambda: limit_in_force(issuing) == 7, "the new limit is in force")
    edge.until(lambda: bool(logged(mine, "reloaded")), "the reload is logged")


def logged(mine: Any, event: str) -> list[Any]:
    lines = [json.loads(line) for line in mine.log.read_text().splitlines() if line[:1] == "{"]
    return [line for line in lines if line["event"] == event]


def spoil(policy: dict[str, Any]) -> None:
    """Eleven mistakes and a good change."""
    for number in range(11):
        policy["facilities"][f"bad-{number:02}"] = {"profile": "none", "clients": []}
    policy["facilities"]["01-001"]["max_batch_items"] = 2


def test_a_bad_policy_is_refused_and_nothing_changes(
    mine: Any, issuing: edge.Stubs, operating: edge.Stubs
) -> None:
    before = edge.status(operating).policy_sha256
    mine.edit_policy(spoil)
    refusal = edge.refused(lambda: edge.reload(operating), "FIELD_INVALID")
    assert "stays in force" in refusal.message
    assert len(refusal.fields) == 10
    assert set(refusal.fields) < {f"facilities.bad-{number:02}.profile" for number in range(11)}
    assert edge.status(operating).policy_sha256 == before
    assert limit_in_force(issuing) == 4096
    assert len(issuing.sign([b"{}"] * 3).signatures) == 3


def test_sighup_with_a_bad_policy_logs_and_changes_nothing(mine: Any, issuing: edge.Stubs) -> None:
    refusals = len(logged(mine, "reload_refused"))
    mine.edit_policy(spoil)
    mine.process.send_signal(signal.SIGHUP)
    edge.until(lambda: len(logged(mine, "reload_refused")) > refusals, "a line in the log")
    assert "facilities.bad-00.profile: " in str(logged(mine, "reload_refused")[-1]["problems"])
    assert limit_in_force(issuing) == 4096
    assert mine.running


def long_names(policy: dict[str, Any]) -> None:
    for number in range(11):
        policy["facilities"]["x" * 9000 + str(number)] = {"profile": "records"}


def long_texts(policy: dict[str, Any]) -> None:
    for number in range(11):
        policy["facilities"][f"x{number}"] = {"profile": "records", "formats": ["ế" * 9000]}


def no_policy(mine: Any) -> None:
    (mine.dir / "policy" / "policy.yaml").write_text("]")


@pytest.mark.parametrize(
    "spoil_it",
    [
        lambda mine: mine.edit_policy(long_names),
        lambda mine: mine.edit_policy(long_texts),
        no_policy,
    ],
    ids=["long-names", "long-texts", "no-yaml"],
)
def test_however_bad_a_policy_is_the_answer_is_an_error_of_ours(
    mine: Any, operating: edge.Stubs, spoil_it: Callable[[Any], None]
) -> None:
    spoil_it(mine)
    refusal = edge.refused(lambda: edge.reload(operating), "FIELD_INVALID")
    assert 1 <= len(refusal.fields) <= 10


# --- certificates -----------------------------------------------------------------------------


def presented(mine: Any) -> bytes:
    """Fingerprint of what a new connection is answered with."""
    context = ssl.create_default_context(cafile=mine.dev["ca"])
    issuer = mine.dev["clients"]["issuer"]
    context.load_cert_chain(issuer["cert"], issuer["key"])
    context.set_alpn_protocols(["h2"])
    host, _, port = mine.dev["address"].partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=edge.SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=mine.dev["server_name"]) as connection,
    ):
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256())


def new_certificate(mine: Any, folder: Path) -> bytes:
    """Puts another certificate of the same authority in place; returns its fingerprint."""
    pki.server(folder, pki.authority(mine.dir / "pki", "ca", "as it is"))
    for name in SERVER_FILES:
        (mine.dir / "pki" / name).write_bytes((folder / name).read_bytes())
    return edge.fingerprint((folder / "server.pem").read_bytes())


def test_new_connections_see_the_new_certificate(
    mine: Any, issuing: edge.Stubs, operating: edge.Stubs, tmp_path: Path
) -> None:
    before = presented(mine)
    after = new_certificate(mine, tmp_path)
    assert presented(mine) == before != after
    answer = edge.reload(operating)
    assert (answer.policy_changed, answer.certificate_changed) == (False, True)
    assert presented(mine) == after
    assert len(issuing.sign().signatures) == 1  # on its old connection
    with edge.connect(mine.dev, "auditor") as fresh:
        request = keys_pb2.ListKeysRequest()
        assert fresh.keys.ListKeys(request, timeout=edge.SECONDS).keys


def test_sighup_renews_the_certificate(mine: Any, tmp_path: Path) -> None:
    after = new_certificate(mine, tmp_path)
    mine.process.send_signal(signal.SIGHUP)
    edge.until(lambda: presented(mine) == after, "the new certificate is presented")


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("server.key", None, "tls.key"),
        ("server.key", b"no key", "tls.key"),
        ("server.pem", b"no certificate", "tls.certificate"),
    ],
    ids=["another-key", "no-key", "no-certificate"],
)
def test_a_certificate_that_cannot_be_served_changes_nothing(
    mine: Any, operating: edge.Stubs, name: str, content: bytes | None, field: str
) -> None:
    before, policy = presented(mine), edge.status(operating).policy_sha256
    limit(mine, 5)
    folder = mine.dir / "pki"
    (folder / name).write_bytes(content or (folder / "issuer.key").read_bytes())
    refusal = edge.refused(lambda: edge.reload(operating))
    assert (refusal.reason, refusal.fields) == ("FIELD_INVALID", (field,))
    assert presented(mine) == before
    assert edge.status(operating).policy_sha256 == policy


# --- reflection, which is on in development ----------------------------------------------------


def reflected(stubs: edge.Stubs) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    return next(stub.ServerReflectionInfo(asked, timeout=edge.SECONDS))


def test_reflection_names_the_services(issuing: edge.Stubs) -> None:
    names = {service.name for service in reflected(issuing).list_services_response.service}
    assert names == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "signer.v1.ControlService",
        "signer.v1.EvidenceService",
        "signer.v1.KeyService",
        "signer.v1.OperationService",
        "signer.v1.SigningService",
    }


def test_reflection_describes_the_details_of_errors(issuing: edge.Stubs) -> None:
    """Tools show them only where they can ask what they are: no file of ours imports them."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(issuing.channel)
    names = ("google.rpc.ErrorInfo", "google.rpc.RetryInfo", "google.rpc.BadRequest")
    asked = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
        for name in ("signer.v1.SignBatchResponse", "signer.v1.SigningService.SignBatch", *names)
    ]
    answers = list(stub.ServerReflectionInfo(iter(asked), timeout=edge.SECONDS))
    assert [each.WhichOneof("message_response") for each in answers] == [
        "file_descriptor_response"
    ] * len(asked)


def test_reflection_is_behind_the_identity_check(mine: Any) -> None:
    with edge.connect(mine.dev, "stranger") as stranger:
        refusal = edge.refused(lambda: reflected(stranger))
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "PEER_UNKNOWN")


def test_the_level_of_the_log_changes_and_what_takes_a_restart_is_named(
    mine: Any, issuing: edge.Stubs, operating: edge.Stubs
) -> None:
    def calls() -> int:
        return sum(call["method"].endswith("SignBatch") for call in logged(mine, "call"))

    earlier = calls()
    issuing.sign([b"{}"])
    edge.until(lambda: calls() > earlier, "the line is written")
    before = calls()
    mine.configure({"log_level": "warning", "limits": {"queued_items": 1000}})
    answer = edge.reload(operating)
    assert (answer.log_level, answer.log_level_changed) == ("warning", True)
    assert list(answer.restart_needed) == ["limits"]
    issuing.sign([b"{}"])
    assert calls() == before
    again = edge.reload(operating)
    assert (again.log_level, again.log_level_changed) == ("warning", False)
    mine.configure({"log_level": "info"})
    assert edge.reload(operating).log_level_changed
    issuing.sign([b"{}"])
    edge.until(lambda: calls() == before + 1, "the call is logged")


def test_the_level_that_lets_more_through_is_that_of_the_line(
    mine: Any, operating: edge.Stubs
) -> None:
    earlier = len(logged(mine, "reloaded"))
    mine.configure({"log_level": "warning"})
    edge.reload(operating)
    edge.until(lambda: len(logged(mine, "reloaded")) > earlier, "the line is written")
    before = len(logged(mine, "reloaded"))
    mine.configure({"log_level": "info"})
    edge.reload(operating)
    edge.until(lambda: len(logged(mine, "reloaded")) == before + 1, "the line is written")


def test_a_configuration_that_is_refused_changes_nothing(mine: Any, operating: edge.Stubs) -> None:
    before = edge.status(operating).policy_sha256
    limit(mine, 3)
    mine.configure({"log_level": "loud"})
    refusal = edge.refused(lambda: edge.reload(operating))
    assert edge.status(operating).policy_sha256 == before
    assert (refusal.reason, list(refusal.fields)) == ("FIELD_INVALID", ["log_level"])
