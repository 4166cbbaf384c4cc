"""config/systemd: judged by systemd's own tools, and against the configuration and the code."""

import subprocess
from pathlib import Path

from signer.config.models import load_config

FOLDER = Path(__file__).parents[2] / "config" / "systemd"
UNIT = (FOLDER / "signer.service").read_text()
CONFIG = load_config(FOLDER / "signer.yaml")
EXPOSURE = 15
"""Tenths that `systemd-analyze security` may find; 2 are for clients of any address."""


def said(name: str) -> list[str]:
    """All values of a setting of the unit."""
    return [line.partition("=")[2] for line in UNIT.splitlines() if line.partition("=")[0] == name]


def analyze(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    unit = folder / "signer.service"
    unit.write_text(text)
    return subprocess.run(
        ["systemd-analyze", *words, str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    installed = UNIT.replace("/opt/signer/bin/signer", "/bin/sh")
    done = analyze(tmp_path, installed, "verify", "--man=no")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    done = analyze(tmp_path, installed.replace("KillMode", "KilMode"), "verify", "--man=no")
    assert "KilMode" in done.stderr


def test_little_is_exposed(tmp_path: Path) -> None:
    words = ["security", "--offline=yes", f"--threshold={EXPOSURE}"]
    done = analyze(tmp_path, UNIT, *words)
    assert done.returncode == 0, done.stdout
    wider = UNIT.replace("CapabilityBoundingSet=\n", "").replace("PrivateUsers=yes\n", "")
    assert analyze(tmp_path, wider, *words).returncode != 0


def test_its_user_can_be_made(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", "--dry-run", str(FOLDER / "signer.sysusers")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"'{said('User')[0]}'" in done.stdout + done.stderr


def test_the_pin_is_its_credential() -> None:
    [credential] = said("LoadCredential")
    [token] = CONFIG.tokens
    name, _, source = credential.partition(":")
    assert str(token.pin_file) == f"/run/credentials/signer.service/{name}"
    assert source == "/etc/signer/pin"


def test_it_may_write_what_the_configuration_names() -> None:
    folder = f"/var/lib/{said('StateDirectory')[0]}"
    assert said("ProtectSystem") == ["strict"]
    for path in (CONFIG.policy, CONFIG.state, CONFIG.audit.directory):
        assert path.is_relative_to(folder)
    assert CONFIG.registry == f"sqlite:///{folder}/registry.sqlite"


def test_it_has_time_to_stop() -> None:
    assert int(said("TimeoutStopSec")[0]) > CONFIG.limits.stop_seconds


def test_refused_starts_are_tried_for_minutes_and_not_for_ever() -> None:
    [pause], [burst], [interval] = (
        said(name) for name in ("RestartSec", "StartLimitBurst", "StartLimitIntervalSec")
    )
    least = int(pause) * int(burst)  # seconds, where each start is refused at once
    assert 300 <= least < 60 * int(interval.removesuffix("min"))
    assert said("RestartPreventExitStatus") == ["2"]
