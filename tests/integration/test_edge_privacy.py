"""What leaves the daemon beside signatures: logs, metrics, error texts. Never a payload."""

from typing import Any

import cbor2
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from signer.observe.catalogue import FAMILIES, HANDSHAKE_CAUSES, OTHER
from signer.v1 import control_pb2, evidence_pb2, keys_pb2, operations_pb2, signing_pb2
from tests.integration import edge
from tests.integration.test_edge_batches import dcc

MARKER = "Zzyzx-Nguyen-Marker"
DATA = MARKER.encode()

DCC_PARTS: list[dict[str, Any]] = [
    dcc(entry={"ci": MARKER}),
    dcc(entry={"dt": MARKER, "co": MARKER}),
    dcc(entry={"dt": "2999-01-01", "is": MARKER}),
    dcc(dob=MARKER),
    {MARKER: [{}]},
    {"v": [{MARKER: MARKER}]},
    {"v": MARKER},
]

BATCHES: list[tuple[str, str, list[bytes]]] = [
    (
        edge.RECORDS,
        "FORMAT_JWS",
        [
            b'{"name":"%s"}' % DATA,
            b'{"%s":1,"%s":2}' % (DATA, DATA),
            b'{"name":"%s"' % DATA,
            b'["%s"]' % DATA,
            b'"%s"' % DATA,
            DATA,
            b'{"name":%s}' % DATA,
            DATA + b"\xff",
            (b'{"%s":' % DATA) * 100 + b"1" + b"}" * 100,
        ],
    ),
    (edge.RECORDS, "FORMAT_MESSAGE", [DATA, DATA * 1000]),
    (edge.RECORDS, "FORMAT_COSE_SIGN1", [DATA]),
    ("facilities/moh/keys/documents", "FORMAT_CMS", [DATA]),
    ("facilities/moh/keys/documents", "FORMAT_CMS_DIGEST", [DATA]),
    ("facilities/moh/keys/tsa", "FORMAT_TIMESTAMP", [DATA]),
    ("facilities/moh/keys/digest", "FORMAT_DIGEST", [DATA, DATA.ljust(32)]),
    (
        "facilities/moh/keys/dcc",
        "FORMAT_HCERT",
        [
            cbor2.dumps({"ver": MARKER, "dob": MARKER} | part | {"nam": {"fn": MARKER, "fnt": "A"}})
            for part in DCC_PARTS
        ]
        + [DATA, b"\xa1" + DATA, b"\xa1\x74" + DATA, b'{"ver":"%s"}' % DATA],
    ),
]


@pytest.fixture(scope="module")
def messages(issuer: edge.Stubs) -> list[str]:
    """Signs batches of marked payloads, good and bad; returns the texts of all failures."""
    texts = []
    for key, name, payloads in BATCHES:
        response = issuer.sign(payloads, key=key, format=name)
        texts += [str(status) for status in response.failures.values()]
    assert len(texts) == 8 + 1 + 1 + 1 + 10
    wrong: list[dict[str, Any]] = [
        {"key": "facilities/01-001/keys/none"},
        {"format": "FORMAT_HCERT"},
        {"format": "FORMAT_UNSPECIFIED"},
        {"request_id": "7"},
        {"payloads": [DATA] * 4097},
        {"payloads": [DATA * 300_000]},
        {"payloads": [DATA] * 4096, "key": edge.RSA, "format": "FORMAT_MESSAGE", "timeout": 0.3},
    ]
    for change in wrong:
        with pytest.raises(grpc.RpcError) as caught:
            issuer.sign(**({"payloads": [b'{"a":"%s"}' % DATA]} | change))
        texts.append(str(caught.value))
    call: Any = issuer.channel.unary_unary("/signer.v1.SigningService/SignBatch")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a\xff" + DATA, timeout=edge.SECONDS)
    return [*texts, str(caught.value)]


def test_error_texts_quote_no_payload(messages: list[str]) -> None:
    assert [text for text in messages if MARKER.lower() in text.lower()] == []


@pytest.mark.usefixtures("messages")
def test_the_log_quotes_no_payload_and_is_one_json_object_a_line(appliance: Any) -> None:
    edge.until(lambda: "FIELD_INVALID" in appliance.log.read_text(), "the last line is written")
    text = appliance.log.read_text()
    assert MARKER.lower() not in text.lower()
    records = appliance.lines
    assert all({"event", "level", "time"} <= record.keys() for record in records)
    calls = [record for record in records if record["event"] == "call"]
    signed = [call for call in calls if call["reason"] == "ok" and call.get("format") == "HCERT"]
    assert signed
    assert signed[-1]["principal"] == appliance.dev["clients"]["issuer"]["principal"]
    assert signed[-1]["rule"] == "facilities.moh.clients"
    assert (signed[-1]["items"], signed[-1]["failed"]) == (11, 10)
    assert [call for call in calls if call["reason"] == "FIELD_INVALID"]


# --- metrics: names and labels are fixed, values are of closed sets ----------------------------

TOKENS, GROUPS = {"signer-dev"}, {"01", "99", ""}
METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in (signing_pb2, keys_pb2, evidence_pb2, control_pb2, operations_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every method of the API: other tests may have called it on the shared appliance."""
FORMATS = {
    "DIGEST",
    "MESSAGE",
    "JWS",
    "COSE_SIGN1",
    "HCERT",
    "CMS",
    "TIMESTAMP",
    "SHC",
    "CMS_DIGEST",
}
ALGORITHMS = {"ES256", "ES384", "RS256", "PS256", "EdDSA"}
ITEM_REASONS = {
    "ok",
    "PAYLOAD_INVALID",
    "CONTENT_DENIED",
    "HSM_UNAVAILABLE",
    "KEY_VERSION_NOT_ACTIVE",
    "INTERNAL",
}
CALL_REASONS = {
    "CANCELLED",
    "OVERLOADED_BY_CLIENT",
    "PEER_UNKNOWN",
    "POLICY_DENIED",
    "KEY_NOT_FOUND",
    "KEY_VERSION_NOT_ACTIVE",
    "KEY_VERSION_EXHAUSTED",
    "FIELD_INVALID",
    "QUOTA_EXCEEDED",
    "CLOCK_DOUBTFUL",
    "CLOSED_HOURS",
    "OVERLOADED",
    "DEADLINE_TOO_SHORT",
    "AUDIT_UNAVAILABLE",
    "REQUEST_ID_REUSED",
    "OPERATION_NOT_FOUND",
    "OPERATION_REFUSED",
    "APPROVAL_INVALID",
    "REGISTRY_UNAVAILABLE",
    "STREAM_ENDED",
    "INTERNAL",
}
STATES = {
    "PRE_ACTIVE",
    "ACTIVE",
    "SUSPENDED",
    "DEACTIVATED",
    "COMPROMISED",
    "DESTROY_SCHEDULED",
    "DESTROYED",
}
CODES = {code.name for code in grpc.StatusCode}
CLASSES = {"high", "normal", "low"}
ANY = None

LABELS: dict[str, dict[str, set[str] | None]] = {
    "signer_requests": {"method": METHODS, "code": CODES},
    "signer_call_failures": {"method": METHODS, "reason": CALL_REASONS},
    "signer_calls_at_work": {},
    "signer_calls_limit": {},
    "signer_items": {
        "group": GROUPS,
        "format": FORMATS,
        "algorithm": ALGORITHMS,
        "reason": ITEM_REASONS,
    },
    "signer_stage_duration_seconds": {"stage": {"authorise", "queue", "hsm", "audit", "format"}},
    "signer_request_duration_seconds": {"method": METHODS},
    "signer_queue_items": {"class": CLASSES},
    "signer_queue_oldest_timestamp_seconds": {"class": CLASSES},
    "signer_workers": {"token": TOKENS, "state": {"starting", "serving", "stopping", "failed"}},
    "signer_breaker_open": {"token": TOKENS},
    "signer_token_differences": {"token": TOKENS},
    "signer_token_serving": {"token": TOKENS},
    "signer_worker_restarts": {"token": TOKENS, "cause": ANY},
    "signer_worker_busy_seconds": {"token": TOKENS},
    "signer_login_attempts": {"token": TOKENS, "result": ANY},
    "signer_pin_latched": {"token": TOKENS},
    "signer_hsm_call_duration_seconds": {"token": TOKENS, "call": {"C_Sign"}},
    "signer_signature_checks": {"result": {"correct", "wrong"}},
    "signer_key_versions": {"state": STATES},
    "signer_operations_pending": {},
    "signer_key_expiry_timestamp_seconds": {"group": GROUPS},
    "signer_keys_away": {},
    "signer_keys_ended": {"group": GROUPS},
    "signer_key_lifetime_used_ratio": {"group": GROUPS},
    "signer_officer_expiry_timestamp_seconds": {},
    "signer_officers": {"certificate": {"valid", "ended", "early"}},
    "signer_officers_needed": {},
    "signer_tls_expiry_timestamp_seconds": {"certificate": {"server", "client_ca"}},
    "signer_quota_rejections": {"group": GROUPS, "window": {"second", "minute", "hour", "day"}},
    "signer_audit_commit_duration_seconds": {},
    "signer_audit_records": {},
    "signer_audit_open_intents": {},
    "signer_audit_checkpoint_timestamp_seconds": {},
    "signer_audit_unsigned_since_timestamp_seconds": {},
    "signer_audit_failures": {"step": {"checkpoint", "shipping"}},
    "signer_audit_requests_forgotten": {},
    "signer_audit_commit_started_timestamp_seconds": {},
    "signer_audit_snapshot_missing": {},
    "signer_audit_stopped": {},
    "signer_log_lines_dropped": {},
    "signer_spans_dropped": {},
    "signer_tls_handshakes_failed": {"cause": {*HANDSHAKE_CAUSES.values(), OTHER}},
    "signer_disk_free_bytes": {},
    "signer_disk_low_bytes": {},
    "signer_time_seconds": {},
    "signer_clock_doubtful": {},
    "signer_registry_unreadable": {},
    "signer_ready": {},
    "signer_config_info": {"sha256": ANY},
    "signer_build_info": {"version": ANY},
}
"""Every metric of ours that there may be, its labels, and their values. ANY: one at a time."""


@pytest.mark.usefixtures("messages")
def test_metrics_have_the_names_and_labels_of_the_design_and_no_more(appliance: Any) -> None:
    status, text = appliance.get("/metrics")
    assert status == 200
    assert MARKER.lower() not in text.lower()
    assert "01-001" not in text  # a facility is never a label
    assert "spiffe" not in text
    found = [
        family
        for family in text_string_to_metric_families(text)
        if not family.name.startswith(("python_", "process_"))
    ]
    names = {family.name.removesuffix("_created") for family in found}
    assert names <= LABELS.keys()
    assert {family.name.removesuffix("_total") for family in FAMILIES} == LABELS.keys()
    assert names >= {"signer_requests", "signer_items", "signer_workers", "signer_ready"}
    for family in found:
        expected = LABELS[family.name.removesuffix("_created")]
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            assert labels.keys() == expected.keys(), sample
            for name, value in labels.items():
                closed = expected[name]
                assert closed is ANY or value in closed, sample


@pytest.mark.usefixtures("messages")
def test_metrics_count_what_happened(appliance: Any) -> None:
    _, text = appliance.get("/metrics")
    families = text_string_to_metric_families(text)
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }
    assert samples["signer_items_total", "", "CONTENT_DENIED", "ES256", "HCERT"] >= 1
    assert samples["signer_items_total", "", "ES256", "HCERT", "PAYLOAD_INVALID"] >= 8
    assert samples["signer_items_total", "01", "ES256", "JWS", "PAYLOAD_INVALID"] >= 8
    assert samples["signer_workers", "serving", "signer-dev"] == 2
    assert samples["signer_ready",] == 1
    assert samples["signer_key_versions", "ACTIVE"] == len(appliance.dev["keys"])
    assert samples["signer_requests_total", "/signer.v1.SigningService/SignBatch", "OK"] >= 5


def test_probes(appliance: Any) -> None:
    assert appliance.get("/livez") == (200, "alive\n")
    assert appliance.get("/readyz") == (200, "ready\n")
    assert appliance.get("/")[0] in (200, 404)
    assert appliance.get("/metrics/../../etc/passwd")[0] == 404
