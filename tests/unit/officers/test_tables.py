"""Kinds and states of operations are listed in several places; all lists agree."""

from pathlib import Path

import pytest

from signer.cli.operations.following import STATES
from signer.client import OVER
from signer.config.models import KINDS as CONFIGURED
from signer.officers.execution import KINDS
from signer.officers.store import ENDED, OperationState
from signer.v1 import operations_pb2 as pb

GUIDE = (Path(__file__).parents[3] / "docs" / "officers.md").read_text()


def test_the_configuration_knows_every_kind_and_no_other() -> None:
    assert sorted(CONFIGURED) == sorted(KINDS)
    assert [kind.name for kind in KINDS.values()] == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_guide_explains_every_kind(kind: str) -> None:
    assert f"| `{kind}` |" in GUIDE


def test_the_api_and_the_commands_know_every_state_and_no_other() -> None:
    states = {str(state) for state in OperationState}
    assert {name.removeprefix("OPERATION_STATE_") for name, _ in pb.OperationState.items()} == {
        *states,
        "UNSPECIFIED",
    }
    assert {state.upper() for state in STATES} == states
    assert {str(state) for state in ENDED} - {"WAITING"} <= OVER <= states
