"""Every metric of the appliance in one table: its name, type, help text and labels.

``metrics`` and ``gauges`` use it, and docs/metrics.md is written from it. Label values come
from closed sets. The facility is never a label (there are 15,000 facilities); its group is.
"""

from collections.abc import Mapping
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.errors import Extent, Reason
from signer.hsm.spec import FailureKind
from signer.model import Format, KeyState


class Label(NamedTuple):
    """A label: its values, or where they come from."""

    name: str
    values: tuple[str, ...] = ()
    source: str = ""


class Family(NamedTuple):
    """A metric as Prometheus sees it."""

    name: str
    text: str
    labels: tuple[Label, ...]

    @property
    def kind(self) -> str:
        """Returns Prometheus' name of the type, which the metric's name says."""
        if self.name.endswith("_total"):
            return "counter"
        return "histogram" if self.name.endswith("_duration_seconds") else "gauge"


def _reasons(scope: Extent) -> tuple[str, ...]:
    return tuple(str(reason) for reason in Reason if reason.scope & scope)


OTHER = "other"
HANDSHAKE_CAUSES = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "CERTIFICATE_VERIFY_FAILED": "certificate_refused",
    "BAD_SIGNATURE": "certificate_refused",
    "WRONG_VERSION_NUMBER": "not_tls",
    "HTTP_REQUEST": "not_tls",
    "UNSUPPORTED_PROTOCOL": "version",
}
"""Causes of a failed handshake by the name that gRPC's TLS library gives."""
OK = "ok"
OVERLOADED_BY_CLIENT = "OVERLOADED_BY_CLIENT"
_CODE = Label("code", source="gRPC status codes, for example OK or UNAVAILABLE")
_TOKEN = Label("token", source="labels of tokens in signer.yaml")
_GROUP = Label("group", source="groups of facilities in the policy; empty without one")
_METHOD = Label("method", source="methods, for example /signer.v1.SigningService/SignBatch")
_CLASS = Label("class", ("high", "normal", "low"))

_TABLE: Mapping[str, tuple[str, *tuple[Label, ...]]] = {
    # Calls.
    "signer_requests_total": ("Calls by method and gRPC code.", _METHOD, _CODE),
    "signer_call_failures_total": (
        (
            "Calls that were refused or failed as a whole, by reason (docs/errors.md). "
            f"{OVERLOADED_BY_CLIENT}: the client had reached a limit of its own."
        ),
        _METHOD,
        Label("reason", (*_reasons(Extent.CALL), OVERLOADED_BY_CLIENT, "CANCELLED")),
    ),
    "signer_request_duration_seconds": (
        "Duration of a call inside the daemon; exemplars have the trace id.",
        _METHOD,
    ),
    "signer_tls_handshakes_failed_total": (
        (
            "TLS handshakes of clients that failed, by cause. Clients that end the connection or "
            "are silent are not counted: gRPC does not say so."
        ),
        Label("cause", tuple(sorted({*HANDSHAKE_CAUSES.values(), OTHER}))),
    ),
    "signer_calls_at_work": ("Calls in progress, without health checks.",),
    "signer_calls_limit": ("Calls that may be in progress at once: `limits.calls`.",),
    "signer_items_total": (
        "Items of batches by result: ok, or the reason of their failure.",
        _GROUP,
        Label("format", tuple(map(str, Format))),
        Label("algorithm", tuple(map(str, Algorithm))),
        Label("reason", (OK, *_reasons(Extent.ITEM))),
    ),
    "signer_stage_duration_seconds": (
        "Duration of each stage of a batch; queue is the first part of hsm.",
        Label("stage", ("authorise", "format", "audit", "hsm", "queue")),
    ),
    "signer_quota_rejections_total": (
        "Batches that a quota refused.",
        _GROUP,
        Label("window", ("second", "minute", "hour", "day")),
    ),
    # The queue and the HSM.
    "signer_queue_items": ("Items in the queue for a worker.", _CLASS),
    "signer_queue_oldest_timestamp_seconds": (
        "When the oldest queued item was queued; absent while the queue is empty.",
        _CLASS,
    ),
    "signer_workers": (
        "Workers by state.",
        _TOKEN,
        Label("state", ("starting", "serving", "stopping", "failed")),
    ),
    "signer_token_serving": (
        "1 while a worker of a token serves; if not, `signer top` says why.",
        _TOKEN,
    ),
    "signer_breaker_open": (
        "1 while a token gets only work that no other token can do: its workers were lost.",
        _TOKEN,
    ),
    "signer_token_differences": (
        "Differences between a token and the registry at the last comparison: see `signer top`.",
        _TOKEN,
    ),
    "signer_worker_restarts_total": (
        "Worker processes that ended, by cause.",
        _TOKEN,
        Label("cause", tuple(map(str, FailureKind))),
    ),
    "signer_worker_busy_seconds_total": ("Seconds that workers spent on chunks.", _TOKEN),
    "signer_login_attempts_total": (
        "Logins to tokens, by result.",
        _TOKEN,
        Label("result", (OK, str(FailureKind.PIN_REJECTED), str(FailureKind.LOGIN_FAILED))),
    ),
    "signer_pin_latched": (
        "1 while the PIN of a token is latched: an operator must run `signer token unlatch`.",
        _TOKEN,
    ),
    "signer_hsm_call_duration_seconds": (
        (
            "Mean duration of a signature in a chunk, with its verification, and at the first use "
            "of a key with its search or unwrapping."
        ),
        _TOKEN,
        Label("call", ("C_Sign",)),
    ),
    "signer_signature_checks_total": (
        "Signatures that were verified before release.",
        Label("result", ("correct", "wrong")),
    ),
    # The audit log.
    "signer_audit_commit_duration_seconds": ("Duration of a group commit.",),
    "signer_audit_commit_started_timestamp_seconds": (
        "When the commit in progress began; 0 without one.",
    ),
    "signer_audit_records_total": ("Durable records of the audit log.",),
    "signer_audit_open_intents": ("Intents whose outcome is not durable yet.",),
    "signer_audit_checkpoint_timestamp_seconds": (
        "When the last checkpoint was signed; absent before the first.",
    ),
    "signer_audit_unsigned_since_timestamp_seconds": (
        "Since when some records are not covered by a checkpoint; 0 without such records.",
    ),
    "signer_audit_failures_total": (
        "Checkpoints not shipped, or not signed or stored: what lasts of these counts each minute.",
        Label("step", ("checkpoint", "shipping")),
    ),
    "signer_audit_requests_forgotten_total": (
        "Request ids that were forgotten before 24 hours, because their caller sends too many.",
    ),
    "signer_audit_stopped": (
        "1 after a write failed or disk space ran low: nothing is signed until a restart.",
    ),
    "signer_audit_snapshot_missing": (
        "1 while the newest file of the log has no snapshot: starts take longer, archiving stops.",
    ),
    "signer_disk_free_bytes": ("Free bytes on the log's disk at the last commit.",),
    "signer_disk_low_bytes": ("Below this many free bytes nothing is signed.",),
    # Keys, officers, certificates.
    "signer_key_versions": ("Key versions by state.", Label("state", tuple(map(str, KeyState)))),
    "signer_keys_away": (
        "Active key versions that no token here can sign with now: their callers get failures.",
    ),
    "signer_key_expiry_timestamp_seconds": (
        (
            "When the next key of a group will have no version that may sign. Keys without an end "
            "and keys that have ended do not count."
        ),
        _GROUP,
    ),
    "signer_keys_ended": (
        "Keys that no longer sign because their time ran out; without those that officers ended.",
        _GROUP,
    ),
    "signer_key_lifetime_used_ratio": (
        (
            "The largest part of its lifetime (`lifetime_signatures`) that an active key version "
            "of a group has used on this appliance: 1 for all of it. Absent without such a bound."
        ),
        _GROUP,
    ),
    "signer_tls_expiry_timestamp_seconds": (
        "When the server's certificates end (notAfter).",
        Label("certificate", ("server", "client_ca")),
    ),
    "signer_officers": (
        (
            "Officers by their certificate; ended and early ones sign no operation, but a renewal "
            "of what has ended."
        ),
        Label("certificate", ("valid", "ended", "early")),
    ),
    "signer_officers_needed": (
        "How many officers must sign the operation that needs most: `operations`.",
    ),
    "signer_officer_expiry_timestamp_seconds": (
        "When the next valid certificate of an officer ends; absent while none is valid.",
    ),
    "signer_operations_pending": ("Proposals of officers that wait for approvals.",),
    # The daemon.
    "signer_ready": ("1 while the daemon serves; if not, /readyz says why.",),
    "signer_time_seconds": ("The machine's clock at the scrape, in seconds since 1970.",),
    "signer_clock_doubtful": (
        "1 while the machine's clock has jumped or does not fit the audit log: nothing is signed.",
    ),
    "signer_registry_unreadable": (
        "1 while the registry or a row of it cannot be read: see /readyz and the log.",
    ),
    "signer_config_info": (
        "The policy in force; always 1.",
        Label("sha256", source="SHA-256 of the policy"),
    ),
    "signer_log_lines_dropped_total": (
        "Lines of the log that were dropped: stderr took them too slowly, or failed.",
    ),
    "signer_spans_dropped_total": ("Spans that the collector of traces did not take.",),
    "signer_build_info": (
        "The software version; always 1.",
        Label("version", source="version of the software"),
    ),
}
"""By name: the help text and the labels."""

FAMILIES = tuple(Family(name, text, tuple(labels)) for name, (text, *labels) in _TABLE.items())
BY_NAME = {family.name: family for family in FAMILIES}


def closed(metric: str, label: str) -> tuple[str, ...]:
    """Returns the values of a metric's label; empty if they come from elsewhere."""
    [values] = [each.values for each in BY_NAME[metric].labels if each.name == label]
    return values
