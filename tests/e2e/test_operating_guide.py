"""docs/operating.md works as printed: a doctor, a daemon, Prometheus with its rules."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.terminal import READERS, ROOT, Terminal
from tests.ports import free_ports


@pytest.mark.parametrize("shell", READERS)
def test_an_sre_gets_a_monitored_service(shell: str, tmp_path: Path) -> None:
    terminal = Terminal(shell, tmp_path, forks=shell == "bash")
    shutil.copytree(ROOT / "config", tmp_path / "config")
    metrics, prometheus = free_ports()
    scraping = tmp_path / "config" / "prometheus" / "prometheus.yml"
    scraping.write_text(scraping.read_text().replace(":9464", f":{metrics}"))
    terminal.replaced |= {": 127.0.0.1:9464": f": 127.0.0.1:{metrics}"}
    terminal.replaced |= {":9464": f":{metrics}", ":9097": f":{prometheus}"}
    (_, begun), (_, looked), (_, stopped) = terminal.read("docs/operating.md", tmp_path)
    assert "ready\n" in begun
    assert f'signer_ready{{instance="127.0.0.1:{metrics}", job="signer"}}' in begun
    assert "ALERTS{" not in begun, "an alert fires on a healthy service"
    assert "ready\n" in looked
    assert stopped == ""
