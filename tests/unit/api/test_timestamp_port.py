"""What callers of the time-stamp port, who are unknown, learn of a refusal."""

import subprocess
from pathlib import Path

import pytest

from signer.api import wire
from signer.api.timestamp_port import _refusal
from signer.errors import CallError, Failure, Reason, clock_doubtful

SYSTEM = "the request cannot be handled due to system failure"


def text_of(folder: Path, made: bytes) -> str:
    (folder / "answer").write_bytes(made)
    command = ["openssl", "ts", "-reply", "-in", str(folder / "answer"), "-text"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_a_clock_in_doubt_is_a_time_that_is_not_available(tmp_path: Path) -> None:
    status = wire.call_status(clock_doubtful("the clock has jumped forward by 3600 s"), "an id")
    text = text_of(tmp_path, _refusal(status))
    assert "the TSA's time source is not available" in text
    assert "3600" not in text


@pytest.mark.parametrize("reason", [Reason.POLICY_DENIED, Reason.QUOTA_EXCEEDED, Reason.INTERNAL])
def test_what_the_policy_says_stays_here(tmp_path: Path, reason: Reason) -> None:
    status = wire.call_status(CallError(reason, "a secret rule", {"rule": "secret"}, 1.0))
    text = text_of(tmp_path, _refusal(status))
    assert SYSTEM in text
    assert "secret" not in text


def test_a_call_without_a_status_is_a_failure_of_the_system(tmp_path: Path) -> None:
    assert SYSTEM in text_of(tmp_path, _refusal(None))


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("messageImprint.hashAlgorithm", "unrecognized or unsupported algorithm identifier"),
        ("reqPolicy", "the requested TSA policy is not supported by the TSA"),
        ("extensions", "the requested extension is not supported by the TSA"),
        ("version", "the data submitted has the wrong format"),
        ("", "the data submitted has the wrong format"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(tmp_path: Path, member: str, said: str) -> None:
    failure = Failure(Reason.PAYLOAD_INVALID, "what is wrong", member=member)
    text = text_of(tmp_path, _refusal(wire.item_status(failure)))
    assert said in text
    assert "what is wrong" in text
