"""A day of an officer and a night of an SRE: two documents that are scripts, run as printed."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from signer.tools.dev import reserve_ports
from tests.e2e.terminal import INSTALLED, ROOT, Terminal, blocks, check_outputs

DAY, NIGHT = "docs/officers-day.md", "docs/sre-night.md"
_AS_ROOT = () if os.geteuid() == 0 else ("--user", "--map-root-user")
ALONE: Sequence[str] = (
    *("unshare", *_AS_ROOT, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
"""Mounts and processes in it end with it; it needs no rights on the machine."""


def may_mount() -> bool:
    tried = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "x", "/mnt"], check=False)
    return tried.returncode == 0


HOUR, LONGEST = 3600, 120
"""Seconds: the day has a quota of an hour, and takes that long at most."""


def test_a_day_of_an_officer(tmp_path: Path) -> None:
    left = HOUR - time.time() % HOUR
    if left < LONGEST:  # or the quota would be used in one hour and asked for in the next
        time.sleep(left)
    terminal = Terminal("bash", tmp_path)
    with terminal.appliance():
        check_outputs(DAY, terminal)
    policy = (tmp_path / "day/policy/policy.yaml").read_text()
    assert 'denied_certificates: ["' in policy


@pytest.mark.skipif(not may_mount(), reason="nothing may be mounted here, also not in a namespace")
def test_a_night_of_an_sre(tmp_path: Path) -> None:
    terminal = Terminal("bash", tmp_path, forks=False)  # but of a server in the namespace
    terminal.shell = [*ALONE, sys.executable, "-m", "tests.e2e.with_forks", *terminal.shell]
    terminal.replaced |= {f"PATH={INSTALLED}": f"PATH=$FORKS:{INSTALLED}"}
    sudo = tmp_path / "stubs" / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')  # root in the namespace
    metrics, _ = reserve_ports()
    terminal.replaced |= {":9464": f":{metrics}"}
    check_outputs(NIGHT, terminal)


@pytest.mark.parametrize("document", [DAY, NIGHT])
def test_every_block_says_what_it_is(document: str) -> None:
    assert {block.language for block in blocks(document)} == {"sh", "text"}
    assert (ROOT / document).read_text().count("```") == 2 * len(blocks(document))
