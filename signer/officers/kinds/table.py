"""Every kind of operation, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from signer.officers.kinds.base import OperationKind
from signer.officers.kinds.certificates_import import ImportCertificateKind
from signer.officers.kinds.create_key import CreateKeyKind, NewVersionKind
from signer.officers.kinds.enrolment import EnrolKind
from signer.officers.kinds.officer_change import ChangeOfficersKind
from signer.officers.kinds.policy_change import PutPolicyKind
from signer.officers.kinds.rotation import RotateKind
from signer.officers.kinds.state_changes import (
    ActivateKind,
    DeactivateKind,
    DestroyKind,
    RestoreKind,
    ResumeKind,
    ScheduleKind,
)

KINDS: Mapping[str, OperationKind[Any]] = {
    kind.name: kind
    for kind in (
        ActivateKind(),
        ChangeOfficersKind(),
        CreateKeyKind(),
        DeactivateKind(),
        DestroyKind(),
        EnrolKind(),
        ImportCertificateKind(),
        NewVersionKind(),
        PutPolicyKind(),
        RestoreKind(),
        ResumeKind(),
        RotateKind(),
        ScheduleKind(),
    )
}
