"""The journal of `signer issue`: whole steps or none, ids that repeat, certificates that do not."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from signer.cli.issue.journal import (
    JOURNAL,
    CosignedRecord,
    IssuedCertificate,
    Journal,
    SignedBefore,
)
from signer.errors import OperatorError

ASKED = {"file": "x"}


def certificate(record: str, content: str = "1", uvci: str = "") -> IssuedCertificate:
    made = uvci or f"U:{record}:{content}"
    return IssuedCertificate(record, "01-001", 2, content, made, "HC1:X", 7)


def lines(folder: Path) -> list[bytes]:
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


def test_what_was_added_is_there_after_a_crash(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with Journal.open(folder) as journal:
        journal.begin(ASKED)
        rows = [CosignedRecord(name, "01-001", f"U:{name}", f"jws {name}") for name in "abc"]
        journal.add_cosigned(rows, ["d"])
        journal.add_issued([certificate("a"), certificate("b")], ["c"])
    with Journal.open(folder) as journal:
        assert journal.interrupted == ASKED
        assert journal.is_issued("a", "1")
        assert not journal.is_issued("a", "2")
        assert not journal.has("c")
        assert journal.signed_before("c", "U:c") == SignedBefore(3, "jws c")
        assert journal.signed_before("c", "another") is None
        assert journal.signed_before("a", "U:a") is None
        assert [each.record for each in journal.certificates()] == ["a", "b"]
        journal.end()
    with Journal.open(folder) as journal:
        assert journal.interrupted is None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / JOURNAL).stat().st_mode) == 0o600


@pytest.mark.parametrize("kept", range(0, 400, 7))
def test_a_torn_line_is_as_if_it_had_not_been(tmp_path: Path, kept: int) -> None:
    folder = tmp_path / "out"
    with Journal.open(folder) as journal:
        before = journal.identity("a", "1"), journal.request_id("key", [("a", b"x")])
        journal.begin(ASKED)
        journal.add_issued([certificate("a"), certificate("b")], [])
    head, run, step = lines(folder)
    torn = step[: min(kept, len(step) - 1)]
    (folder / JOURNAL).write_bytes(head + run + torn)
    with Journal.open(folder) as journal:
        assert not journal.has("a")
        assert not journal.has("b")
        assert (journal.identity("a", "1"), journal.request_id("key", [("a", b"x")])) == before
        journal.add_issued([certificate("b")], [])
    added = {"issued", "failed", "refused", "time"}
    assert [json.loads(line).keys() for line in lines(folder)][-1] == added
    assert len(lines(folder)) == 3


def test_ids_depend_on_key_payload_and_failures_and_on_nothing_else(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "out") as journal:
        first = journal.request_id("key", [("a", b"x"), ("b", b"y")])
        journal.add_issued([certificate("z")], [])
        assert journal.request_id("key", [("a", b"x"), ("b", b"y")]) == first
        others = {
            first,
            journal.request_id("other", [("a", b"x"), ("b", b"y")]),
            journal.request_id("key", [("a", b"x")]),
            journal.request_id("key", [("a", b"xy"), ("b", b"")]),
            journal.request_id("key", [("b", b"y"), ("a", b"x")]),
        }
        journal.add_issued([], ["b"])
        others.add(journal.request_id("key", [("a", b"x"), ("b", b"y")]))
    with Journal.open(tmp_path / "elsewhere") as journal:
        others.add(journal.request_id("key", [("a", b"x"), ("b", b"y")]))
    assert len(others) == 7


def test_each_certificate_has_another_identity_and_the_replaced_are_revoked(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "out") as journal:
        seen = set()
        for content in ("1", "2", "1"):  # corrected, and corrected back
            identity = journal.identity("a", content)
            assert identity == journal.identity("a", content)
            seen.add(identity)
            journal.add_issued([certificate("a", content, identity.hex())], [])
        assert len(seen) == 3
        assert len(journal.revoked) == 2
        in_force = [journal.in_force(each) for each in journal.certificates()]
        assert in_force == [False, False, True]
    with Journal.open(tmp_path / "elsewhere") as journal:
        assert journal.identity("a", "1") not in seen


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        Journal.open(tmp_path / "out"),
        pytest.raises(OperatorError, match="another `signer issue` is at work"),
    ):
        Journal.open(tmp_path / "out")
    Journal.open(tmp_path / "out").close()


def test_what_is_not_a_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(OperatorError, match="has files, but not those of an earlier run"):
        Journal.open(tmp_path)
    for content in (b"[]\n", b"{}\n", b'{"journal":2,"time":1}\n', b"\xff\n"):
        (tmp_path / JOURNAL).write_bytes(content)
        with pytest.raises(OperatorError, match="line 1: it is not of a journal"):
            Journal.open(tmp_path)
        assert (tmp_path / JOURNAL).read_bytes() == content


def test_file_names_say_nothing_of_a_person() -> None:
    made = certificate("Nguyen-Thi-Mau")
    assert made.stem.startswith("0000002-")
    assert not {"Nguyen", "Mau"} & set(made.stem.replace("-", " ").split())
    assert made.stem != certificate("Nguyen-Thi-Mau", "2").stem


def test_what_the_ministry_refuses_is_signed_anew_by_the_facility(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.add_cosigned([CosignedRecord(r, "01-001", f"U:{r}", "jws") for r in "abc"], [])
        journal.add_issued([certificate("a")], ["b", "c"], ["b"])
    with Journal.open(tmp_path) as journal:
        assert journal.signed_before("b", "U:b") is None
        assert journal.signed_before("c", "U:c") == SignedBefore(2, "jws")


def test_a_full_disk_leaves_whole_lines_and_nothing_is_added_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append(os_write(descriptor, data[:20]))
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written[-1]

    os_write = os.write
    with Journal.open(tmp_path) as journal:
        journal.begin(ASKED)
        before = lines(tmp_path)
        monkeypatch.setattr("os.write", write)
        with pytest.raises(OperatorError, match="No space left"):
            journal.add_issued([certificate("a")], [])
        monkeypatch.undo()
        with pytest.raises(OperatorError, match="No space left"):
            journal.add_issued([certificate("b")], [])
    assert lines(tmp_path) == before
    with Journal.open(tmp_path) as journal:
        assert journal.people == 0


@pytest.mark.parametrize(
    "row", [{"issued": [{}]}, {"issued": 1}, {"cosigned": [1]}, {"drawn": 1}, {"isxued": []}]
)
def test_a_line_of_another_form_is_named(tmp_path: Path, row: dict[str, object]) -> None:
    with Journal.open(tmp_path) as journal:
        journal.begin(ASKED)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(json.dumps({"time": 1, **row}).encode() + b"\n")
    with pytest.raises(OperatorError, match="line 3: it is not of a journal"):
        Journal.open(tmp_path)


def test_an_empty_journal_beside_certificates_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.begin(ASKED)
    (tmp_path / JOURNAL).write_bytes(b"")
    (tmp_path / "certificates").mkdir()
    with pytest.raises(OperatorError, match="not those of an earlier run"):
        Journal.open(tmp_path)
