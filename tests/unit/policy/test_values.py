"""Single values of the policy."""

import pytest

from signer.policy import values


def test_hosts_are_kept_in_one_form() -> None:
    listed = ["a.example:443", "a.example", "b.example:8443"]
    assert values.hosts(listed) == {"a.example", "b.example:8443"}


@pytest.mark.parametrize("host", ["a.example:65536", "a.example.", "A.example", "example", "a..b"])
def test_what_is_not_a_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="should be a host in lower case"):
        values.hosts([host])
