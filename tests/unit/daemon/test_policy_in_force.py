"""Parsed policies are kept by use and by size."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from signer.config.policy_documents import PolicyText, read_policy_text
from signer.config.policy_files import PolicyFile, policy_text
from signer.daemon.policy_in_force import KEPT_BYTES, MOST_KEPT, ParsedPolicies, PolicyInForce
from tests.unit.officers.opstage import POLICY, Stage, empty_registry


def text(name: str, size: int = 10) -> PolicyText:
    """Of a policy only its hash matters here."""
    policy: Any = type("Named", (), {"sha256": name})
    return PolicyText(policy, bytes(size))


def kept(cache: ParsedPolicies, names: str) -> str:
    return "".join(name for name in names if cache.get(name) is not None)


def test_what_was_used_last_is_kept() -> None:
    cache, names = ParsedPolicies(), "abcdefg"
    for name in names[:MOST_KEPT]:
        cache.keep(text(name))
    assert cache.get("a") is not None
    cache.keep(text("e"))
    assert kept(cache, names) == "acde"


def test_large_ones_are_kept_as_long_as_there_is_room_and_the_last_always() -> None:
    cache = ParsedPolicies()
    for name in "ab":
        cache.keep(text(name, KEPT_BYTES // 2))
    assert kept(cache, "ab") == "ab"
    cache.keep(text("c"))
    assert kept(cache, "abc") == "bc"
    cache.keep(text("d", 5 * KEPT_BYTES))
    assert kept(cache, "abcd") == "d"
    cache.keep(text("d", 5 * KEPT_BYTES))
    cache.keep(text("e"))
    assert kept(cache, "abcde") == "e"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage", empty_registry(tmp_path / "empty.sqlite"))
    yield made
    made.close()


def test_drafts_do_not_make_the_policy_in_force_be_parsed_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: PolicyInForce = stage.serving._policies
    parsed: list[bytes] = []
    number = count(300)

    def counted(content: bytes) -> PolicyText:
        parsed.append(content)
        return read_policy_text(content)

    monkeypatch.setattr("signer.daemon.policy_in_force.read_policy_text", counted)
    in_force = policies.text
    for _ in range(3 * MOST_KEPT):
        content = POLICY.replace("200 per second", f"{next(number)} per second").encode()
        draft = policy_text([PolicyFile("policy.yaml", content)])
        assert policies.parse(draft) is policies.parse(draft)
        assert policies.parse(in_force.text) is in_force
        assert policies.in_files() is in_force
    assert len(parsed) == 3 * MOST_KEPT
