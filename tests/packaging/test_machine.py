"""docs/packaging.md as it is printed, on an empty Debian with systemd: `make packaging`."""

import os
import pty
import re
import shutil
import signal
import subprocess
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.document import Document, Ran
from tests.packaging import container
from tests.packaging.dockerfile import ROOT

pytestmark = pytest.mark.packaging

RELEASE = (
    "config",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "requirements.lock",
    "signer",
    "softhsm",
)
"""What is read of the release's folder."""
VARIABLES = {
    "HOME": "/root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
KEY = "facilities/01-001/keys/new"
CONFIG = "/etc/signer/signer.yaml"
AS_SIGNER = "runuser -u signer -- signer"


class Machine(Document):
    """A Debian machine and the guide that is followed on it, in the folder of the release."""

    def __init__(self, root: Path) -> None:
        super().__init__("packaging.md")
        self.root = root
        self.running: container.Running | None = None

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def prepare(self, *names: str) -> None:
        """Runs blocks before the machine is booted, while it has this one's network."""
        variables, options = container.pip_settings()
        settings = container.with_variables({**VARIABLES, **variables})
        for name in names:
            command = ["sh", "-eu", "-c", self.blocks[name]]
            container.inside(self.root, command, "--chdir=/root/release", *settings, *options)

    def command(self, command: Sequence[str]) -> Ran:
        done = subprocess.run(
            self._there(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=container.SECONDS,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def typed(self, name: str, answers: Sequence[str]) -> None:
        """Runs a block at a terminal, where ``answers`` are typed."""
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        with os.fdopen(ours, "wb", buffering=0) as keyboard, os.fdopen(theirs, "rb") as terminal:
            process = subprocess.Popen(
                self._there(["sh", "-eu", "-c", self.blocks[name]]), stdin=terminal
            )
            container.wait(self.at("/etc/signer/pin").is_file, "there is a PIN", 60)
            for answer in (*answers, *[self.at("/etc/signer/pin").read_text().strip()] * 2):
                keyboard.write(f"{answer}\n".encode())
            assert process.wait(60) == 0

    def says(self, commands: str) -> str:
        """Runs commands that must succeed; returns what they print."""
        done = self.sh(commands)
        assert done.code == 0, f"{commands}: {done.out}{done.errors}{self.journal()}"
        return done.out.strip()

    def shown(self, name: str) -> str:
        return self.says(f"systemctl show signer --property {name} --value")

    def journal(self) -> str:
        return self.sh("journalctl --unit signer --output cat --no-pager").out[-5000:]

    def serves(self) -> bool:
        return self.sh(f"{AS_SIGNER} health --config {CONFIG}").code == 0

    def _there(self, command: Sequence[str]) -> list[str]:
        assert self.running is not None
        words = ["env", "--chdir=/root/release", *command]
        return self.running.enter(words, {**VARIABLES, **self.environment})


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    base = container.debian()
    folder = tmp_path_factory.mktemp("machine")
    made = Machine(container.copy(base, folder / "debian"))
    made.at("/root/release").mkdir()
    container.run(["cp", "-r", *(str(ROOT / name) for name in RELEASE), made.at("/root/release")])
    made.prepare("packages", "program")
    # Of its own network it has the loopback alone: its ports are not this machine's.
    options = ["--boot", "--private-network", "--hostname=machine"]
    with container.running(made.root, folder / "log", *options) as made.running:
        up = r"systemctl is-system-running | grep -Eq 'running|degraded'"
        container.wait(lambda: made.sh(up).code == 0, "the machine is up", 120)
        made.run("service", "trial")
        made.typed("token", ["so-pin-of-the-trial"] * 2)
        made.run("init", "start")
        yield made
        os.kill(made.running.process.pid, signal.SIGTERM)
        made.running.process.wait(120)
    shutil.rmtree(folder)


def test_every_block_of_the_guide_is_run() -> None:
    source = Path(__file__).read_text()
    document = Document("packaging.md")
    assert [name for name in document.blocks if f'"{name}"' not in source] == []


def test_it_runs_with_the_rights_of_the_unit_alone(machine: Machine) -> None:
    status = machine.says(f"cat /proc/{machine.shown('MainPID')}/status")
    values = dict(line.split(":", 1) for line in status.splitlines())
    assert values["Seccomp"].strip() == "2"
    assert values["NoNewPrivs"].strip() == "1"
    assert int(values["CapBnd"], 16) == int(values["CapEff"], 16) == 0
    assert machine.says("stat --format %U /var/lib/signer/registry.sqlite") == "signer"
    assert machine.says("stat --format '%U %a' /etc/signer/pin") == "root 400"
    assert not machine.at("/run/credentials/signer.service/pin").exists()  # its memory, not ours


def test_two_officers_make_a_key_and_it_signs(machine: Machine) -> None:
    """So the sandbox lets an administrative worker make keys, and workers sign."""
    for name in ("officer-a", "officer-b", "issuer"):
        text = (ROOT / "config" / "client.yaml").read_text()
        text = text.replace("tls/server-ca", "trial/pki/ca").replace(
            "tls/operator", f"trial/pki/{name}"
        )
        machine.at(f"/root/{name}.yaml").write_text(text)
    told = "--yes --id --client /root/officer-a.yaml"
    approve = "--yes --wait --client /root/officer-b.yaml"
    for operation in (f"create-key {KEY} --algorithm ES256", f"activate {KEY}/versions/1"):
        identity = machine.says(f"signer operations propose {operation} {told}")
        machine.says(f"signer operations approve {identity} {approve}")
    signed = machine.says(
        "echo '{}' > /root/record.json && signer sign --client /root/issuer.yaml"
        f" --key {KEY} --format JWS --out - /root/record.json"
    )
    assert signed.count(".") == 2


def test_prometheus_finds_the_process_too(machine: Machine) -> None:
    """The sandbox hides other processes, and not what the metrics of our own are read from."""
    page = machine.says(
        'python3 -c "from urllib.request import urlopen;'
        " print(urlopen('http://127.0.0.1:9464/metrics').read().decode())\""
    )
    for name in ("signer_ready 1.0", "process_start_time_seconds", "process_open_fds"):
        assert name in page


def test_reload(machine: Machine) -> None:
    machine.says("systemctl reload signer")
    container.wait(lambda: '"event": "reloaded"' in machine.journal(), "the log says so", 30)


def test_a_refused_start_is_tried_until_it_is_mended(machine: Machine) -> None:
    """A PIN that others can read is refused; root's, which the service's group reads, is not."""
    text = machine.at(CONFIG).read_text()
    machine.says("install -m 444 -g signer /etc/signer/pin /etc/signer/open")
    machine.at(CONFIG).write_text(re.sub("pin_file: .*", "pin_file: open", text))
    machine.says("systemctl restart signer")
    container.wait(lambda: int(machine.shown("NRestarts")) >= 1, "it is tried again", 120)
    assert "/etc/signer/open is readable by others" in machine.journal()
    assert not machine.serves()
    machine.says("chmod 440 /etc/signer/open")
    container.wait(machine.serves, "it serves", 120)
    machine.at(CONFIG).write_text(text)
    machine.says("systemctl restart signer")
    container.wait(machine.serves, "it serves as before", 120)


def test_wrong_usage_is_not_tried_again(machine: Machine) -> None:
    drop_in = machine.at("/run/systemd/system/signer.service.d/wrong.conf")
    machine.says(f"mkdir -p {Path('/') / drop_in.parent.relative_to(machine.root)}")
    machine.says(
        "printf '[Service]\\nExecStart=\\nExecStart=/opt/signer/bin/signer serve --wrong\\n'"
        " > /run/systemd/system/signer.service.d/wrong.conf"
    )
    machine.says("systemctl daemon-reload && systemctl restart signer")
    container.wait(lambda: machine.shown("ActiveState") == "failed", "it has given up", 60)
    assert machine.shown("ExecMainStatus") == "2"
    machine.says("rm -r /run/systemd/system/signer.service.d && systemctl daemon-reload")
    machine.says("systemctl reset-failed signer && systemctl start signer")
    container.wait(machine.serves, "it serves again", 120)


def test_the_version_before_is_put_back(machine: Machine) -> None:
    release = machine.at("/opt/signer").readlink().name
    machine.environment = {"VERSION": release.removeprefix("signer-")}
    before = machine.shown("MainPID")
    machine.run("back")
    assert machine.shown("MainPID") != before
    container.wait(machine.serves, "it serves", 120)


def test_stop_drains_and_ends_well(machine: Machine) -> None:
    machine.says("systemctl stop signer")
    assert (machine.shown("Result"), machine.shown("ExecMainStatus")) == ("success", "0")
    assert machine.says("pgrep --count --uid signer || true") == "0"
    machine.says("systemctl start signer")
    container.wait(machine.serves, "it serves again", 120)
