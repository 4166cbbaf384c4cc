"""The soft limit of open files is raised, and connections are bounded by the hard one."""

import resource

import pytest

from signer.daemon.descriptors import KEPT, room_for
from signer.errors import OperatorError

NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "room", "raised"),
    [
        (NONE, NONE, 1000, None),
        (1000 + KEPT, 9999, 1000, None),
        (KEPT, 9999, 1000, 1000 + KEPT),
        (KEPT, NONE, 1000, 1000 + KEPT),
        (KEPT, 1000, 1000 - KEPT, 1000),
        (KEPT + 1, KEPT + 1, 1, KEPT + 1),
    ],
)
def test_room(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, room: int, raised: int | None
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert room_for(1000) == room
    assert limits[1:] == ([] if raised is None else [(raised, hard)])


def test_without_room_for_one_connection_the_start_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, KEPT))
    with pytest.raises(OperatorError, match="set LimitNOFILE"):
        room_for(1000)
