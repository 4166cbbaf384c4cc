"""Every kind of operation, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from signer.approval import Proposal
from signer.config.models import KINDS as NAMES
from signer.operations.certifying import ImportCertificateKind
from signer.operations.enrolment import EnrolKind
from signer.operations.kind import Details, Kind, Problems
from signer.operations.lives import (
    ActivateKind,
    DeactivateKind,
    DestroyKind,
    RestoreKind,
    ResumeKind,
    ScheduleKind,
)
from signer.operations.making import CreateKeyKind, NewVersionKind
from signer.operations.people import ChangeOfficersKind
from signer.operations.policies import PutPolicyKind
from signer.operations.rotation import RotateKind

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
