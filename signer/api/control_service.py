"""ControlService: for operators."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from signer import __version__
from signer.api import wire
from signer.api.guard import Caller
from signer.errors import CallError, ConfigError, Reason, invalid
from signer.hsm.front.service import Hsm
from signer.policy.recent_usage import Busy
from signer.signing.request import Served
from signer.v1 import control_pb2, control_pb2_grpc

DEFAULT_BUSIEST = 10
MOST_BUSIEST = 100


@dataclass(frozen=True, slots=True)
class ReloadChanges:
    """What a reload has changed, and the changed settings that need a restart."""

    policy_changed: bool
    certificate_changed: bool
    log_level: str
    log_level_changed: bool
    restart_needed: tuple[str, ...]


class DaemonStatus(Protocol):
    """What the daemon, a layer above, says of itself."""

    @property
    def started_at(self) -> float: ...
    @property
    def differences(self) -> Sequence[str]: ...
    def reasons(self) -> Sequence[str]: ...
    def busiest(self, count: int) -> Sequence[Busy]: ...


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """Shows the state of the daemon, and reloads its files."""

    def __init__(
        self, status: DaemonStatus, reload: Callable[[], ReloadChanges], *, served: Served, hsm: Hsm
    ) -> None:
        """``reload`` reads the daemon's files again; it raises ConfigError."""
        self._status, self._reload = status, reload
        self._served = served
        self._hsm = hsm

    def Reload(
        self, _request: control_pb2.ReloadRequest, caller: Caller
    ) -> control_pb2.ReloadResponse:
        """Answers with what is in force afterwards; raises CallError with all problems."""
        try:
            changed = self._reload()
        except ConfigError as error:
            raise CallError(
                Reason.FIELD_INVALID,
                f"{error.source} is refused: what was in force stays in force",
                violations=error.problems,
            ) from error
        caller.notes |= {"policy_changed": changed.policy_changed}
        return control_pb2.ReloadResponse(
            policy_sha256=self._served.snapshot.policy.sha256, **asdict(changed)
        )

    def GetStatus(
        self, request: control_pb2.GetStatusRequest, _caller: Caller
    ) -> control_pb2.GetStatusResponse:
        """Answers with the state of the daemon; raises CallError."""
        if not 0 <= request.busiest <= MOST_BUSIEST:
            raise invalid("busiest", f"is {request.busiest}, expected 0 to {MOST_BUSIEST}")
        snapshot = self._served.snapshot
        reasons = self._status.reasons()
        waiting = self._hsm.waiting()
        return control_pb2.GetStatusResponse(
            version=__version__,
            start_time=wire.timestamp(self._status.started_at),
            ready=not reasons,
            reasons=reasons,
            policy_sha256=snapshot.policy.sha256,
            facilities=len(snapshot.policy.facilities),
            key_versions=len(snapshot.keys),
            queued_items=sum(waiting.values()),
            differences=self._status.differences,
            workers=[control_pb2.WorkerStatus(**asdict(each)) for each in self._hsm.status()],
            busiest=[
                control_pb2.FacilityUsage(
                    facility=each.facility,
                    items=each.items,
                    queued_items=waiting.get(each.facility, 0),
                    last_minute=each.minute,
                    last_hour=each.hour,
                )
                for each in self._status.busiest(request.busiest or DEFAULT_BUSIEST)
            ],
        )
