"""Which files of secrets are accepted, and how files are written: no link is followed."""

import os
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from signer.audit.format.segments import Segment
from signer.audit.read.reader import Index
from signer.audit.write.disk import Disk, replace_durably
from signer.cli.audit.archive import keep_copy
from signer.config.policy_files import PolicyFile, policy_text, write_policy_files
from signer.files import create_file, is_private, open_lock, private_mode, replace_file

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


# --- links ------------------------------------------------------------------------------------


def write_policy(path: Path) -> None:
    write_policy_files(path.parent, policy_text([PolicyFile(path.name, b"new")]))


def write_index(path: Path) -> None:
    Index().save(Segment(path.with_suffix(".log"), 0))


def archive(path: Path) -> None:
    source = path.with_name("source")
    source.write_bytes(b"new")
    keep_copy(source, path, Disk())


WRITERS: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "replace_file": (lambda path: replace_file(path, b"new"), b"new"),
    "replace_durably": (lambda path: replace_durably(Disk(), path, b"new"), b"new"),
    "policy": (write_policy, b"new"),
    "index": (write_index, sha256().digest()),
}


@pytest.mark.parametrize("draft", [".{}.draft", "{}.draft", "{}"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_in_the_way_is_replaced_and_not_followed(
    tmp_path: Path, writer: str, draft: str
) -> None:
    write, content = WRITERS[writer]
    victim = tmp_path / "victim"
    victim.write_bytes(b"as before")
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / ("name.index" if writer == "index" else "name.yaml")
    (folder / draft.format(path.name)).symlink_to(victim)
    write(path)
    assert victim.read_bytes() == b"as before"
    assert not path.is_symlink()
    assert path.read_bytes() == content


@pytest.mark.parametrize("there", [True, False])
def test_a_link_at_the_draft_of_an_archive_is_not_followed(tmp_path: Path, there: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "segment"
    if there:
        victim.write_bytes(b"as before")
    (tmp_path / "segment.draft").symlink_to(victim)
    archive(path)
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()
    assert victim.exists() is there
    assert not there or victim.read_bytes() == b"as before"


OPENERS: dict[str, Callable[[Path], object]] = {
    "a new file": lambda path: create_file(path, 0o600),
    "a lock": open_lock,
    "a new segment": Disk().create,
    "a segment": Disk().open,
    "the ballast": lambda path: Disk().reserve(path, 4096),
}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("what", OPENERS)
def test_a_link_is_not_opened_for_writing(tmp_path: Path, what: str, there: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "name"
    if there:
        victim.write_bytes(b"as before")
    path.symlink_to(victim)
    with pytest.raises(OSError, match=r"File exists|symbolic link"):
        OPENERS[what](path)
    assert victim.exists() is there
    assert not there or victim.read_bytes() == b"as before"
