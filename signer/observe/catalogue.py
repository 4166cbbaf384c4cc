"""Every metric of the appliance in one table: its name, kind, labels, and what it tells.

``metrics`` and ``gauges`` are made from it and docs/metrics.md is written from it. Labels
come from closed sets only. The facility is never a label (there are 15,000): its group is.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.errors import TABLE, Extent, Reason
from signer.hsm.spec import FailureKind
from signer.model import Format, KeyState


class Kind(enum.StrEnum):
    """What Prometheus calls the type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Label(NamedTuple):
    """A label: its values one by one, or which set of the configuration they are from."""

    name: str
    values: tuple[str, ...] = ()
    source: str = ""


class Family(NamedTuple):
    """One metric as Prometheus sees it."""

    name: str
    kind: Kind
    text: str
    labels: tuple[Label, ...] = ()


def _reasons(scope: Extent) -> tuple[str, ...]:
    return tuple(str(reason) for reason in Reason if TABLE[reason].scope & scope)


OK = "ok"
OVERLOADED_BY_CLIENT = "OVERLOADED_BY_CLIENT"
_CODES = "a code of gRPC, as in OK or UNAVAILABLE"
_TOKEN = Label("token", source="labels of tokens in signer.yaml")
_GROUP = Label("group", source="groups of facilities in the policy; empty without one")
_METHOD = Label("method", source="calls of the API, as in /signer.v1.SigningService/SignBatch")
_CLASS = Label("class", ("high", "normal", "low"))
_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

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
        "Calls that were refused or failed as a whole, by the reason of docs/errors.md; "
        f"{OVERLOADED_BY_CLIENT}: the caller alone held all of its own places.",
        (
            _METHOD,
            Label("reason", (*_reasons(Extent.CALL), OVERLOADED_BY_CLIENT, "CANCELLED")),
        ),
    ),
    Family(
        "signer_request_duration_seconds",
        _H,
        "Time of a call inside the daemon; exemplars carry the trace id.",
        (_METHOD,),
    ),
    Family("signer_calls_at_work", _G, "Calls that are under way now; health checks do not count."),
    Family("signer_calls_limit", _G, "Calls that may be under way at once: `limits.calls`."),
    Family(
        "signer_items_total",
        _C,
        "Items of batches by how they ended: ok, or the reason of their failure.",
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
        "Time a batch spends in each stage; queue is the first part of hsm.",
        (Label("stage", ("authorise", "format", "audit", "hsm", "queue")),),
    ),
    Family(
        "signer_quota_rejections_total",
        _C,
        "Batches refused by a quota.",
        (_GROUP, Label("window", ("second", "minute", "hour", "day"))),
    ),
    # The line before the HSM, and the HSM.
    Family("signer_queue_items", _G, "Items that wait for a worker.", (_CLASS,)),
    Family(
        "signer_queue_oldest_timestamp_seconds",
        _G,
        "Since when the oldest of them waits; absent while none does.",
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
        "Workers that ended, by cause.",
        (_TOKEN, Label("cause", tuple(map(str, FailureKind)))),
    ),
    Family("signer_worker_busy_seconds_total", _C, "Time workers spent on chunks.", (_TOKEN,)),
    Family(
        "signer_login_attempts_total",
        _C,
        "Logins to tokens, by result.",
        (_TOKEN, Label("result", (OK, str(FailureKind.PIN_REJECTED)))),
    ),
    Family(
        "signer_pin_latched",
        _G,
        "1 while a token waits for an operator because of its PIN.",
        (_TOKEN,),
    ),
    Family(
        "signer_hsm_call_duration_seconds",
        _H,
        "Mean time of one signature in a chunk, its check included.",
        (_TOKEN, Label("call", ("C_Sign",))),
    ),
    Family(
        "signer_signature_checks_total",
        _C,
        "Signatures checked before release.",
        (Label("result", ("correct", "wrong")),),
    ),
    # The audit log.
    Family("signer_audit_commit_duration_seconds", _H, "Time of one group commit."),
    Family(
        "signer_audit_commit_started_timestamp_seconds",
        _G,
        "When the commit that is under way began; 0 while none is.",
    ),
    Family("signer_audit_records_total", _C, "Records written."),
    Family("signer_audit_open_intents", _G, "Intents whose outcome is not durable yet."),
    Family(
        "signer_audit_checkpoint_timestamp_seconds",
        _G,
        "When the log was last signed; absent before the first time.",
    ),
    Family(
        "signer_audit_unsigned_since_timestamp_seconds",
        _G,
        "Since when there have been records that no checkpoint covers; 0 while there are none.",
    ),
    Family(
        "signer_audit_failures_total",
        _C,
        "Checkpoints that could not be made, kept or shipped.",
        (Label("step", ("checkpoint", "shipping")),),
    ),
    Family(
        "signer_audit_requests_forgotten_total",
        _C,
        "Request ids forgotten before their 24 hours, for their caller sends too many.",
    ),
    Family(
        "signer_audit_stopped",
        _G,
        "1 after a write failed or the disk got low: nothing is signed before a restart.",
    ),
    Family("signer_disk_free_bytes", _G, "Free bytes of the log's disk at its last commit."),
    Family("signer_disk_low_bytes", _G, "Below so many free bytes nothing is signed."),
    # Keys, officers, certificates.
    Family(
        "signer_key_versions",
        _G,
        "Key versions by the state in force.",
        (Label("state", tuple(map(str, KeyState))),),
    ),
    Family(
        "signer_key_expiry_timestamp_seconds",
        _G,
        "When the next key of a group will have no version left that may sign. Keys without an "
        "end, and those that have ended, do not count.",
        (_GROUP,),
    ),
    Family(
        "signer_keys_ended",
        _G,
        "Keys that sign no longer because their time ran out; not those that officers have ended.",
        (_GROUP,),
    ),
    Family(
        "signer_tls_expiry_timestamp_seconds",
        _G,
        "When the certificates that the server uses end.",
        (Label("certificate", ("server", "client_ca")),),
    ),
    Family("signer_operations_pending", _G, "Proposals of officers that wait for signatures."),
    # The daemon.
    Family("signer_ready", _G, "1 while the daemon serves; /readyz has the reasons."),
    Family(
        "signer_time_seconds",
        _G,
        "The machine's clock: seconds since 1970 when it was scraped.",
    ),
    Family(
        "signer_clock_doubtful",
        _G,
        "1 while the machine's clock is behind the log, or has jumped since the start.",
    ),
    Family(
        "signer_registry_unreadable",
        _G,
        "1 while the registry cannot be followed: suspensions made elsewhere are not seen.",
    ),
    Family(
        "signer_config_info",
        _G,
        "Always 1; the policy in force.",
        (Label("sha256", source="the SHA-256 of the policy, one at a time"),),
    ),
    Family(
        "signer_build_info",
        _G,
        "Always 1; the software.",
        (Label("version", source="the version of the software, one at a time"),),
    ),
)

BY_NAME = {family.name: family for family in FAMILIES}


def closed(metric: str, label: str) -> tuple[str, ...]:
    """Returns the closed set of values of a metric's label."""
    [found] = [each.values for each in BY_NAME[metric].labels if each.name == label]
    return found
