"""A front process that lies to officers: what they read is still what they sign."""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.appliances import Appliance
from tests.commands import Run

KEY = "facilities/01-001/keys/backdoor"
PROGRAM = Path(__file__).with_name("serve_lies.py")


class LyingAppliance(Appliance):
    def start(self, timeout: float = 120) -> float:
        self._command = [sys.executable, str(PROGRAM)]
        return super().start(timeout)


@pytest.fixture
def hanoi(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zone of the officers' machine."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Ho_Chi_Minh")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("hanoi")
def test_an_officer_reads_what_is_signed_whatever_the_appliance_shows(
    tmp_path: Path, run: Run
) -> None:
    until = datetime(2031, 1, 1, tzinfo=UTC)
    appliance = LyingAppliance(tmp_path / "dev")
    appliance.init()
    appliance.set_workers(1)
    with appliance:
        a, b = (("--client", appliance.client_file(f"officer-{who}")) for who in "ab")
        words = ("create-key", KEY, "--algorithm", "ES256", "--activate", "--id", "--yes")
        proposed = run(*("operations", "propose", *words, "--sign-until", until.isoformat()), *a)
        assert proposed.code == 0
        identity = proposed.out.strip()
        shown = run("operations", "show", identity, *b)
        approved = run("operations", "approve", identity, "--wait", "--yes", *b)
        assert approved.code == 0, approved.err
        for text in (proposed.err, shown.out, approved.err):
            lines = [" ".join(line.split()) for line in text.splitlines()]
            lie = next(number for number, line in enumerate(lines) if "harmless" in line)
            assert "a help, not part of what is signed" in lines[lie - 1]
            signed = lines[: lie - 1]
            assert f"key {KEY}" in signed
            assert "activate yes" in signed
            assert f"sign until 2031-01-01 07:00:00+07:00 ({until.timestamp():.0f})" in signed
            assert identity in " ".join(signed)
            assert not any("harmless" in line for line in signed)
