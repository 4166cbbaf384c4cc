"""GetPolicy: the files of the policy in force, in pages that fit into an answer."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.api import operation_service
from signer.api.operation_service import OperationService
from signer.client._operations import _whole_files
from signer.config.policy_files import PolicyFile, policy_text
from signer.errors import CallError
from signer.v1 import operations_pb2 as pb

FILES = st.dictionaries(
    st.sampled_from(["a.yaml", "b.yaml", "c.yaml"]), st.binary(min_size=1, max_size=40), min_size=1
)


def service(files: dict[str, bytes], sha256: str = "ab") -> OperationService:
    text = policy_text([PolicyFile(*each) for each in sorted(files.items())])
    held = SimpleNamespace(policy=SimpleNamespace(sha256=sha256), text=text)
    proposals: Any = SimpleNamespace(policy=lambda: held)
    return OperationService(proposals, cast("Any", None), {}, "log", cast("Any", None))


@given(FILES, st.integers(1, 25))
def test_all_pages_together_are_the_files(files: dict[str, bytes], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operation_service, "MOST_ATTACHED", most)
        answers = [service(files).GetPolicy(pb.GetPolicyRequest(), cast("Any", None))]
        while token := answers[-1].next_page_token:
            request = pb.GetPolicyRequest(page_token=token)
            answers.append(service(files).GetPolicy(request, cast("Any", None)))
    parts = [(each.name, each.content) for answer in answers for each in answer.files]
    assert _whole_files(parts) == dict(sorted(files.items()))
    assert all(0 < sum(len(f.content) for f in answer.files) <= most for answer in answers)


@pytest.mark.parametrize("token", ["x", "ab", "ab/", "ab/-1", "ab/1x", "cd/1", "ab/1234567890123"])
def test_a_token_of_another_policy_is_refused(token: str) -> None:
    """Pages of two policies together would be neither."""
    request = pb.GetPolicyRequest(page_token=token)
    with pytest.raises(CallError, match="page_token"):
        service({"a.yaml": b"x"}).GetPolicy(request, cast("Any", None))
