"""Who may call at all: certificates, TLS versions, principals, roles."""

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from signer.tools.dev import key_plan as plan
from signer.tools.dev import pki
from signer.v1 import control_pb2, keys_pb2
from tests.integration import edge

STATUS = "/signer.v1.ControlService/GetStatus"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(appliance: Any) -> pki.Authority:
    return edge.client_authority(appliance)


@pytest.fixture
def everybody(appliance: Any) -> Iterator[dict[str, edge.Stubs]]:
    stubs = {name: edge.connect(appliance.dev, name) for name in appliance.dev["clients"]}
    yield stubs
    for each in stubs.values():
        each.channel.close()


def test_without_a_certificate_there_is_no_connection(appliance: Any) -> None:
    credentials = grpc.ssl_channel_credentials(Path(appliance.dev["ca"]).read_bytes())
    options = [("grpc.ssl_target_name_override", appliance.dev["server_name"])]
    channel = grpc.secure_channel(appliance.dev["address"], credentials, options)
    with edge.Stubs(channel) as nobody:
        assert edge.refused_by_grpc(nobody.sign)[0] == "UNAVAILABLE"
        check = health_pb2.HealthCheckRequest()
        asked = edge.refused_by_grpc(lambda: nobody.health.Check(check, timeout=edge.SECONDS))
        assert asked[0] == "UNAVAILABLE"


def test_a_certificate_of_another_authority_gives_no_connection(
    appliance: Any, folder: Path
) -> None:
    (folder / "foreign").mkdir()
    foreign = pki.authority(folder / "foreign", "ca", "Signer development clients")
    issued = edge.issue(folder, foreign, "foreign", plan.principal("issuer"))
    with edge.connect_with(appliance.dev, issued.certificate, issued.key) as stubs:
        assert edge.refused_by_grpc(stubs.sign)[0] == "UNAVAILABLE"


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (plan.principal("issuer"), plan.principal("issuer-2")),
        (plan.principal("issuer"), plan.principal("issuer")),
    ],
    ids=["none", "two", "one-twice"],
)
def test_exactly_one_uri_is_needed(
    appliance: Any, folder: Path, authority: pki.Authority, uris: tuple[str, ...]
) -> None:
    issued = edge.issue(folder, authority, f"uris-{len(uris)}", *uris)
    with edge.connect_with(appliance.dev, issued.certificate, issued.key) as stubs:
        refusal = edge.refused(stubs.sign)
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "PEER_UNKNOWN")
    assert f"has {len(uris)} URIs" in refusal.message


@pytest.mark.parametrize(
    "uri",
    [
        plan.principal("issuer") + "\0.attacker.example",
        plan.principal("issuer") + "\0",
        "\0" + plan.principal("issuer"),
    ],
    ids=["before-the-nul", "nul-last", "nul-first"],
)
def test_a_uri_with_a_nul_is_nobody(
    appliance: Any, folder: Path, authority: pki.Authority, uri: str
) -> None:
    """gRPC reads the URI up to the NUL: that is another principal."""
    issued = edge.issue(folder, authority, "nul", uri)
    pem = issued.certificate.read_bytes()
    with edge.connect_with(appliance.dev, issued.certificate, issued.key) as stubs:
        refusal = edge.refused(stubs.sign, "PEER_UNKNOWN")
    name = f"certificate {issued.serial:x} with SHA-256 {edge.fingerprint(pem).hex()}"
    assert refusal.metadata == {"certificate": name}
    assert name in refusal.message


@pytest.mark.parametrize("role", ["issuer", "officer-a", "auditor", "operator"])
def test_a_certificate_of_an_authority_is_nobody(
    appliance: Any, folder: Path, authority: pki.Authority, role: str
) -> None:
    issued = edge.issue(folder, authority, "ca", plan.principal(role), ca=True)
    with edge.connect_with(appliance.dev, issued.certificate, issued.key) as stubs:
        refusal = edge.refused(lambda: edge.status(stubs), "PEER_UNKNOWN")
    assert "authority" in refusal.message
    assert refusal.metadata == {"principal": plan.principal(role)}


@pytest.mark.parametrize(
    "uri",
    [
        plan.principal("issuer") + "/",
        plan.principal("issuer").upper(),
        plan.principal("issue"),
        plan.principal("*"),
    ],
)
def test_a_principal_is_matched_whole(
    appliance: Any, folder: Path, authority: pki.Authority, uri: str
) -> None:
    issued = edge.issue(folder, authority, "near", uri)
    with edge.connect_with(appliance.dev, issued.certificate, issued.key) as stubs:
        assert edge.refused(stubs.sign).reason == "PEER_UNKNOWN"


def test_the_common_name_is_nobody(appliance: Any, folder: Path, authority: pki.Authority) -> None:
    issued = edge.issue(folder, authority, "issuer", plan.principal("nobody"))
    with edge.connect_with(appliance.dev, issued.certificate, issued.key) as stubs:
        assert edge.refused(stubs.sign).reason == "PEER_UNKNOWN"


def test_a_second_certificate_of_a_principal_is_as_good(
    appliance: Any, folder: Path, authority: pki.Authority
) -> None:
    issued = edge.issue(folder, authority, "second", plan.principal("issuer"))
    with edge.connect_with(appliance.dev, issued.certificate, issued.key) as stubs:
        assert len(stubs.sign().signatures) == 1


def test_a_stranger_learns_nothing_on_any_service(everybody: dict[str, edge.Stubs]) -> None:
    stranger = everybody["stranger"]
    name = keys_pb2.GetKeyRequest(name=edge.RECORDS)
    refusals = [
        edge.refused(stranger.sign),
        edge.refused(lambda: stranger.sign(key="facilities/none/keys/none")),
        edge.refused(lambda: stranger.keys.GetKey(name, timeout=edge.SECONDS)),
        edge.refused(
            lambda: stranger.control.GetStatus(control_pb2.GetStatusRequest(), timeout=edge.SECONDS)
        ),
    ]
    assert len(set(map(str, refusals))) == 1
    assert len({each.call_id for each in refusals}) == len(refusals)
    assert (refusals[0].code, refusals[0].reason) == ("UNAUTHENTICATED", "PEER_UNKNOWN")
    principal = plan.principal("stranger")
    assert refusals[0].metadata == {"rule": "default.deny", "principal": principal}
    assert refusals[0].message.endswith(principal)


def test_only_issuers_sign(everybody: dict[str, edge.Stubs]) -> None:
    assert len(everybody["issuer"].sign().signatures) == 1
    for name in ("officer-a", "officer-b", "auditor", "operator"):
        denied(everybody[name].sign)


def test_only_operators_control(everybody: dict[str, edge.Stubs]) -> None:
    status, reload = control_pb2.GetStatusRequest(), control_pb2.ReloadRequest()
    answer = everybody["operator"].control.GetStatus(status, timeout=edge.SECONDS)
    assert answer.ready
    for name in ("issuer", "officer-a", "officer-b", "auditor"):
        control = everybody[name].control
        denied(lambda control=control: control.GetStatus(status, timeout=edge.SECONDS))
        denied(lambda control=control: control.Reload(reload, timeout=edge.SECONDS))


def denied(call: Any) -> None:
    refusal = edge.refused(call, "POLICY_DENIED")
    assert refusal.metadata.keys() == {"rule", "role", "principal"}
    assert refusal.metadata["rule"] == "roles"
    assert refusal.metadata["principal"] in refusal.message
    assert refusal.metadata["role"] in refusal.message


def test_everybody_with_a_role_sees_keys(everybody: dict[str, edge.Stubs]) -> None:
    request = keys_pb2.GetKeyRequest(name=edge.RECORDS)
    for name in set(everybody) - {"stranger", "issuer-b", "issuer-c"}:
        key = everybody[name].keys.GetKey(request, timeout=edge.SECONDS).key
        assert key.name == edge.RECORDS
        assert bool(key.formats) == (name == "issuer")


def test_health_is_open_to_every_certificate_of_ours(everybody: dict[str, edge.Stubs]) -> None:
    for stubs in everybody.values():
        for service in ("", "signer.v1.SigningService"):
            check = health_pb2.HealthCheckRequest(service=service)
            answer = stubs.health.Check(check, timeout=edge.SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_what_is_not_offered_is_unimplemented(everybody: dict[str, edge.Stubs]) -> None:
    channel = everybody["operator"].channel
    call: Any = channel.unary_unary("/signer.v1.ControlService/Shutdown")
    assert edge.refused_by_grpc(lambda: call(b"", timeout=edge.SECONDS))[0] == "UNIMPLEMENTED"


# --- TLS versions: an exchange in plain HTTP/2, for gRPC's own clients only speak TLS 1.3 ------


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + (struct.pack(">I", stream) + payload)
    )


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing and Huffman code: RFC 7541, section 6.2.2."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def exchange(appliance: Any, version: ssl.TLSVersion) -> tuple[str | None, bytes, bytes]:
    """Calls GetStatus as operator; returns TLS version, header bytes and data."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(appliance.dev["ca"])
    operator = appliance.dev["clients"]["operator"]
    context.load_cert_chain(operator["cert"], operator["key"])
    context.set_alpn_protocols(["h2"])
    host, _, port = appliance.dev["address"].partition(":")
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", STATUS.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    # GRPC_ALLOW_TRUE_BINARY_METADATA: the error's details come as bytes, not in base64.
    settings = struct.pack(">HI", 0xFE03, 1)
    with (
        socket.create_connection((host, int(port)), timeout=edge.SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=appliance.dev["server_name"]) as connection,
    ):
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(4, 0, 0, settings)
            + frame(1, 4, 1, b"".join(literal(*header) for header in headers))
            + frame(0, 1, 1, bytes(5))
        )
        return connection.version(), *answer(connection)


def answer(connection: ssl.SSLSocket) -> tuple[bytes, bytes]:
    """Reads frames until the stream ends; returns header blocks and data."""
    file = connection.makefile("rb")
    headers, data = b"", b""
    while True:
        head = file.read(9)
        assert len(head) == 9, "the connection ended before the answer"
        payload = file.read(int.from_bytes(head[:3], "big"))
        kind, flags = head[3], head[4]
        if kind == 1:
            headers += payload
        if kind == 0:
            data += payload
        if kind in (0, 1) and flags & 1:
            return headers, data


def test_tls_1_2_makes_no_call(appliance: Any) -> None:
    version, headers, data = exchange(appliance, ssl.TLSVersion.TLSv1_2)
    assert version == "TLSv1.2"
    assert b"PEER_UNKNOWN" in headers
    assert b"TLSv1.3 is required" in headers
    assert data == b""


def test_the_same_exchange_over_tls_1_3_is_answered(appliance: Any) -> None:
    version, headers, data = exchange(appliance, ssl.TLSVersion.TLSv1_3)
    assert version == "TLSv1.3"
    assert b"PEER_UNKNOWN" not in headers
    assert control_pb2.GetStatusResponse.FromString(data[5:]).ready


# --- handshakes that fail ----------------------------------------------------------------------


def handshake(made: Any, certificate: tuple[Path, Path] | None) -> None:
    """Tries to connect, and waits until the appliance has closed the connection."""
    context = ssl.create_default_context(cafile=made.dev["ca"])
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(*certificate)
    host, _, port = made.dev["address"].partition(":")
    with (
        suppress(OSError),
        socket.create_connection((host, int(port)), timeout=edge.SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=made.dev["server_name"]) as connection,
    ):
        while connection.recv(4096):
            pass


def no_tls(made: Any) -> None:
    host, _, port = made.dev["address"].partition(":")
    with socket.create_connection((host, int(port)), timeout=edge.SECONDS) as plain:
        plain.sendall(b"hello, is this the appliance?\r\n")
        with suppress(OSError):
            while plain.recv(4096):
                pass


def test_handshakes_that_fail_are_counted_by_cause_and_do_not_flood_the_log(
    make_appliance: Any, tmp_path: Path
) -> None:
    made = make_appliance()
    (tmp_path / "foreign").mkdir()
    foreign = pki.authority(tmp_path / "foreign", "ca", "Signer development clients")
    issued = edge.issue(tmp_path, foreign, "foreign", plan.principal("issuer"))
    times = 40
    for _ in range(times):
        handshake(made, None)
        handshake(made, (issued.certificate, issued.key))
        no_tls(made)

    def failed(cause: str) -> float:
        line = f'signer_tls_handshakes_failed_total{{cause="{cause}"}} '
        text = made.get("/metrics")[1]
        return next(float(one[len(line) :]) for one in text.splitlines() if one.startswith(line))

    causes = ("no_certificate", "certificate_refused", "not_tls")
    edge.until(lambda: [failed(each) for each in causes] == [times] * 3, "all are counted")
    assert failed("other") == 0
    with edge.connect(made.dev) as stubs:
        assert len(stubs.sign().signatures) == 1
    assert made.stop() == 0
    said = [line for line in made.lines if line["event"] == "handshakes_failed"]
    assert sum(line["times"] for line in said) == 3 * times
    assert len(said) < times
    assert "foreign" not in made.log.read_text()
