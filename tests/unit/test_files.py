"""Which files of secrets are accepted."""

import os
import stat

import pytest

from signer.files import is_private, private_mode

ROOT, SERVICE = 0, 10001


def file(owner: int, mode: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, SERVICE, 5, 0, 0, 0))


@pytest.mark.parametrize(
    ("owner", "mode", "us", "accepted"),
    [
        (SERVICE, 0o400, SERVICE, True),
        (SERVICE, 0o600, SERVICE, True),
        (SERVICE, 0o640, SERVICE, False),  # whoever else is in the group
        (SERVICE, 0o604, SERVICE, False),
        (ROOT, 0o400, ROOT, True),
        (ROOT, 0o640, ROOT, False),
        (ROOT, 0o440, SERVICE, True),  # a Secret under fsGroup, a credential under an ACL
        (ROOT, 0o640, SERVICE, True),
        (ROOT, 0o444, SERVICE, False),
        (ROOT, 0o460, SERVICE, False),
        (ROOT, 0o450, SERVICE, False),
        (1000, 0o440, SERVICE, False),  # somebody else's
    ],
)
def test_who_may_read_a_secret(owner: int, mode: int, us: int, accepted: bool) -> None:
    assert is_private(file(owner, mode), us) is accepted


@pytest.mark.parametrize("owner", [ROOT, SERVICE])
@pytest.mark.parametrize("us", [ROOT, SERVICE])
def test_the_mode_that_is_advised_is_accepted_and_lets_the_reader_in(owner: int, us: int) -> None:
    mode = private_mode(owner, us)
    assert is_private(file(owner, mode), us)
    assert bool(mode & 0o040) is (us not in {owner, ROOT})
