"""An empty Debian in a folder, and systemd-nspawn to run things in it. Needs root."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SUITE = "bookworm"
_DEBIAN = Path(__file__).parents[2] / "build" / "packaging" / "debian"
_PACKAGES = (
    *("ca-certificates", "python3", "python3-pip", "python3-venv"),  # for the official image's
    *("dbus", "iproute2", "procps", "systemd", "systemd-sysv"),  # for a machine that boots
)
SECONDS = 1800
"""How long one command may take: packages come over networks."""

# Docker gives a container with a read-only root no folder to write to, nspawn would.
_NSPAWN = {**os.environ, "SYSTEMD_NSPAWN_TMPFS_TMP": "0", "SYSTEMD_LOG_LEVEL": "warning"}


def debian() -> Path:
    """Makes an empty Debian, unless an earlier run has; returns its root, to be copied."""
    if not _DEBIAN.exists():
        draft = _DEBIAN.with_name("part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
        include = f"--include={','.join(_PACKAGES)}"
        run(["debootstrap", "--variant=minbase", include, SUITE, str(draft), *_mirror()])
        draft.rename(_DEBIAN)
    return _DEBIAN


def _mirror() -> list[str]:
    """Where this machine has its own packages from, if it is the same Debian."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {SUITE}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.split()[:1]


def copy(root: Path, to: Path) -> Path:
    """Returns a copy of a root."""
    run(["cp", "--archive", "--reflink=auto", str(root), str(to)])
    return to


def run(command: Sequence[str | Path], **options: object) -> str:
    """Runs a command that must succeed; returns what it printed."""
    done = subprocess.run(  # type: ignore[call-overload]
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        **options,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-5000:]}{done.stderr[-5000:]}"
    return str(done.stdout)


def nspawn(root: Path, *options: str, command: Sequence[str] = ()) -> list[str]:
    """The command line that runs something in a root; it shares this machine's network."""
    fixed = ["--quiet", "--register=no", "--keep-unit", "--timezone=off", f"--directory={root}"]
    return ["systemd-nspawn", *fixed, *options, *(["--", *command] if command else [])]


def inside(root: Path, command: Sequence[str], *options: str) -> str:
    """Runs a command in a root; it must succeed."""
    return run(nspawn(root, "--pipe", *options, command=command), env=_NSPAWN)


class Running:
    """A container that runs; ``leader`` is its process 1, as this machine numbers it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log
        self.leader = 0

    def enter(self, command: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """The command line that runs something in the container."""
        settings = [f"{name}={value}" for name, value in variables.items()]
        within = ["nsenter", "--target", str(self.leader), "--all"]
        return [*within, "--", "env", "--ignore-environment", *settings, *command]

    def begun(self) -> bool:
        """Whether process 1 is its own program already, and not nspawn's work before that."""
        assert self.process.poll() is None, self.said()
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for child in path.read_text().split():
            name = Path(f"/proc/{child}/comm").read_text().strip()
            if name != "systemd-nspawn" and not name.startswith("("):
                self.leader = int(child)
        return self.leader != 0

    def said(self) -> str:
        return self.log.read_text()[-5000:]


@contextmanager
def running(root: Path, log: Path, *options: str, command: Sequence[str] = ()) -> Iterator[Running]:
    """A container that runs for the length of the block; whoever ends it may do so before."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            nspawn(root, "--console=pipe", *options, command=command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_NSPAWN,
        )
    container = Running(process, log)
    try:
        wait(container.begun, "the container has a process 1", 60)
        yield container
    finally:
        if container.leader and process.poll() is None:
            os.kill(container.leader, signal.SIGKILL)  # without it nspawn ends, not the other way
        process.wait()


def wait(happened: Callable[[], bool], what: str, seconds: float) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def pip_settings() -> tuple[dict[str, str], list[str]]:
    """How pip reaches its packages on this machine: variables, and options of nspawn.

    Whatever that is: configuration files, and the files that settings name, are shown to
    the container under their own names.
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
    proxies = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name in (*names, *proxies)
    }
    files = [Path(each) for each in ("/etc/pip.conf", "/etc/xdg/pip")]
    files += [Path.home() / ".config/pip", Path.home() / ".pip"]
    values = [*variables.values(), *_configured()]
    files += [Path(word) for value in values for word in value.split() if word.startswith("/")]
    shown = sorted({str(each) for each in files if each.exists()})
    return variables, [f"--bind-ro={each}" for each in shown]


def _configured() -> list[str]:
    listed = run(["python3", "-m", "pip", "config", "list"])
    return [line.partition("=")[2].strip("'\"") for line in listed.splitlines()]


def with_variables(variables: Mapping[str, str]) -> list[str]:
    """Options of nspawn that give a container its variables."""
    return [f"--setenv={name}={value}" for name, value in variables.items()]
