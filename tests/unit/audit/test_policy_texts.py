"""Texts of policies beside a log: none is missing, and none is another one."""

from hashlib import sha256
from pathlib import Path

import pytest

from signer.audit.read.policy_texts import text_problems

TEXTS = (b"first", b"second")
HASHES = [sha256(text).digest() for text in TEXTS]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    for text, digest in zip(TEXTS, HASHES, strict=True):
        (tmp_path / "policies" / digest.hex()).write_bytes(text)
    return tmp_path


def test_texts_that_are_there_and_whole_have_no_problem(log: Path) -> None:
    (log / "policies" / f"{HASHES[0].hex()}.draft").write_bytes(b"fir")
    assert list(text_problems(log, HASHES)) == []
    assert list(text_problems(log, [])) == []


def test_a_changed_text_is_a_problem_also_of_a_policy_that_no_record_names(log: Path) -> None:
    path = log / "policies" / HASHES[1].hex()
    path.write_bytes(b"Second")
    for named in (HASHES, []):
        [problem] = text_problems(log, named)
        assert (
            problem == f"policies/{path.name} is not the policy that its name says: it was changed"
        )


def test_a_missing_text_is_a_problem(log: Path) -> None:
    (log / "policies" / HASHES[0].hex()).unlink()
    [problem] = text_problems(log, HASHES)
    assert f"policies/{HASHES[0].hex()} is missing" in problem


def test_without_the_folder_every_text_is_missing(tmp_path: Path) -> None:
    assert len(list(text_problems(tmp_path, HASHES))) == 2
