"""Every kind of operation, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from signer.config.models import KINDS as NAMES
from signer.officers.approval import Proposal
from signer.officers.kinds.base import Details, Kind, Problems
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

KINDS: Mapping[str, Kind[Any]] = {
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

if set(KINDS) != set(NAMES):
    raise AssertionError("the configuration names other kinds than there are")


def known_kind(proposal: Proposal) -> tuple[Kind[Any], Details]:
    """Returns a proposal's kind and its details; raises Problems where they are none of ours."""
    known = KINDS.get(proposal.kind)
    if known is None:
        raise Problems(f"{proposal.kind} is no kind of operation here")
    return known, known.read(proposal.details)
