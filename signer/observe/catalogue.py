"""Every metric of the appliance in one table: its name, type, help text and labels.

``metrics`` and ``gauges`` use it, and docs/metrics.md is written from it. Label values come
from closed sets. The facility is never a label (there are 15,000 facilities); its group is.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.errors import TABLE, Extent, Reason
from signer.hsm.spec import FailureKind
from signer.model import Format, KeyState


class MetricType(enum.StrEnum):
    """The type of a metric in Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Label(NamedTuple):
    """A label: its values, or where they come from."""

    name: str
    values: tuple[str, ...] = ()
    source: str = ""


class Family(NamedTuple):
    """A metric as Prometheus sees it."""

    name: str
    kind: MetricType
    text: str
    labels: tuple[Label, ...] = ()


def _reasons(scope: Extent) -> tuple[str, ...]:
    return tuple(str(reason) for reason in Reason if TABLE[reason].scope & scope)


OK = "ok"
OVERLOADED_BY_CLIENT = "OVERLOADED_BY_CLIENT"
_CODES = "gRPC status codes, for example OK or UNAVAILABLE"
_TOKEN = Label("token", source="labels of tokens in signer.yaml")
_GROUP = Label("group", source="groups of facilities in the policy; empty without one")
_METHOD = Label("method", source="methods, for example /signer.v1.SigningService/SignBatch")
_CLASS = Label("class", ("high", "normal", "low"))
_C, _G, _H = MetricType.COUNTER, MetricType.GAUGE, MetricType.HISTOGRAM

FAMILIES = (
    # Calls.
    Family(
        "signer_requests_total",
        _C,
        "Calls by method and gRPC code.",
        (_METHOD, Label("code", source=_CODES)),
    ),
    Family(
        "signer_call_failures_total",
        _C,
        "Calls that were refused or failed as a whole, by reason (docs/errors.md). "
        f"{OVERLOADED_BY_CLIENT}: the client had reached `limits.calls_per_client`.",
        (
            _METHOD,
            Label("reason", (*_reasons(Extent.CALL), OVERLOADED_BY_CLIENT, "CANCELLED")),
        ),
    ),
    Family(
        "signer_request_duration_seconds",
        _H,
        "Duration of a call inside the daemon; exemplars have the trace id.",
        (_METHOD,),
    ),
    Family("signer_calls_at_work", _G, "Calls in progress, without health checks."),
    Family("signer_calls_limit", _G, "Calls that may be in progress at once: `limits.calls`."),
    Family(
        "signer_items_total",
        _C,
        "Items of batches by result: ok, or the reason of their failure.",
        (
            _GROUP,
            Label("format", tuple(map(str, Format))),
            Label("algorithm", tuple(map(str, Algorithm))),
            Label("reason", (OK, *_reasons(Extent.ITEM))),
        ),
    ),
    Family(
        "signer_stage_duration_seconds",
        _H,
        "Duration of each stage of a batch; queue is the first part of hsm.",
        (Label("stage", ("authorise", "format", "audit", "hsm", "queue")),),
    ),
    Family(
        "signer_quota_rejections_total",
        _C,
        "Batches that a quota refused.",
        (_GROUP, Label("window", ("second", "minute", "hour", "day"))),
    ),
    # The queue and the HSM.
    Family("signer_queue_items", _G, "Items in the queue for a worker.", (_CLASS,)),
    Family(
        "signer_queue_oldest_timestamp_seconds",
        _G,
        "When the oldest queued item was queued; absent while the queue is empty.",
        (_CLASS,),
    ),
    Family(
        "signer_workers",
        _G,
        "Workers by state.",
        (_TOKEN, Label("state", ("starting", "serving", "stopping", "failed"))),
    ),
    Family(
        "signer_worker_restarts_total",
        _C,
        "Worker processes that ended, by cause.",
        (_TOKEN, Label("cause", tuple(map(str, FailureKind)))),
    ),
    Family(
        "signer_worker_busy_seconds_total", _C, "Seconds that workers spent on chunks.", (_TOKEN,)
    ),
    Family(
        "signer_login_attempts_total",
        _C,
        "Logins to tokens, by result.",
        (_TOKEN, Label("result", (OK, str(FailureKind.PIN_REJECTED)))),
    ),
    Family(
        "signer_pin_latched",
        _G,
        "1 while the PIN of a token is latched: an operator must run `signer token unlatch`.",
        (_TOKEN,),
    ),
    Family(
        "signer_hsm_call_duration_seconds",
        _H,
        "Mean duration of a signature in a chunk, with its verification.",
        (_TOKEN, Label("call", ("C_Sign",))),
    ),
    Family(
        "signer_signature_checks_total",
        _C,
        "Signatures that were verified before release.",
        (Label("result", ("correct", "wrong")),),
    ),
    # The audit log.
    Family("signer_audit_commit_duration_seconds", _H, "Duration of a group commit."),
    Family(
        "signer_audit_commit_started_timestamp_seconds",
        _G,
        "When the commit in progress began; 0 without one.",
    ),
    Family("signer_audit_records_total", _C, "Durable records of the audit log."),
    Family("signer_audit_open_intents", _G, "Intents whose outcome is not durable yet."),
    Family(
        "signer_audit_checkpoint_timestamp_seconds",
        _G,
        "When the last checkpoint was signed; absent before the first.",
    ),
    Family(
        "signer_audit_unsigned_since_timestamp_seconds",
        _G,
        "Since when some records are not covered by a checkpoint; 0 without such records.",
    ),
    Family(
        "signer_audit_failures_total",
        _C,
        "Checkpoints that could not be signed, stored or shipped.",
        (Label("step", ("checkpoint", "shipping")),),
    ),
    Family(
        "signer_audit_requests_forgotten_total",
        _C,
        "Request ids that were forgotten before 24 hours, because their caller sends too many.",
    ),
    Family(
        "signer_audit_stopped",
        _G,
        "1 after a write failed or disk space ran low: nothing is signed until a restart.",
    ),
    Family("signer_disk_free_bytes", _G, "Free bytes on the log's disk at the last commit."),
    Family(
        "signer_disk_low_bytes",
        _G,
        "Nothing is signed below so many free bytes.",
    ),
    # Keys, officers, certificates.
    Family(
        "signer_key_versions",
        _G,
        "Key versions by state.",
        (Label("state", tuple(map(str, KeyState))),),
    ),
    Family(
        "signer_key_expiry_timestamp_seconds",
        _G,
        "When the next key of a group will have no version that may sign. Keys without an end "
        "and keys that have ended do not count.",
        (_GROUP,),
    ),
    Family(
        "signer_keys_ended",
        _G,
        "Keys that no longer sign because their time ran out; without those that officers ended.",
        (_GROUP,),
    ),
    Family(
        "signer_tls_expiry_timestamp_seconds",
        _G,
        "When the server's certificates end (notAfter).",
        (Label("certificate", ("server", "client_ca")),),
    ),
    Family("signer_operations_pending", _G, "Proposals of officers that wait for approvals."),
    # The daemon.
    Family("signer_ready", _G, "1 while the daemon serves; if not, /readyz says why."),
    Family(
        "signer_time_seconds",
        _G,
        "The machine's clock at the scrape, in seconds since 1970.",
    ),
    Family(
        "signer_clock_doubtful",
        _G,
        "1 while the machine's clock is behind the log, or after it has jumped.",
    ),
    Family(
        "signer_registry_unreadable",
        _G,
        "1 while the registry cannot be read: suspensions by other appliances have no effect.",
    ),
    Family(
        "signer_config_info",
        _G,
        "The policy in force; always 1.",
        (Label("sha256", source="SHA-256 of the policy"),),
    ),
    Family(
        "signer_build_info",
        _G,
        "The software version; always 1.",
        (Label("version", source="version of the software"),),
    ),
)

BY_NAME = {family.name: family for family in FAMILIES}


def closed(metric: str, label: str) -> tuple[str, ...]:
    """Returns the values of a metric's label; empty where they come from elsewhere."""
    [values] = [each.values for each in BY_NAME[metric].labels if each.name == label]
    return values
