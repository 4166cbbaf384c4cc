"""Podman with runc: a storage of its own, images built from the Dockerfile, containers that run.

Needs root. The base image is imported under the name that the Dockerfile has: an empty Debian with
Debian's Python. Containers share this machine's network.
"""

import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.packaging import container
from tests.packaging.dockerfile import ROOT

LIMITS = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
"""Where the machine's own are lower, runc cannot raise them to podman's."""
AS_THE_GUIDE_SAYS = (
    *("--read-only", "--read-only-tmpfs=false"),  # docker gives no folders to write to
    *("--cap-drop=ALL", "--security-opt=no-new-privileges"),
)


class Engine:
    """Podman with a storage in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._command = [
            *("podman", f"--root={folder / 'storage'}", f"--runroot={folder / 'run'}"),
            f"--tmpdir={folder / 'tmp'}",  # else it shares a folder with the machine's own podman
            *("--runtime=runc", "--cgroup-manager=cgroupfs"),
        ]

    def ask(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs a command of podman, whatever becomes of it."""
        return subprocess.run(
            [*self._command, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=container.SECONDS,
        )

    def do(self, *words: str | Path) -> str:
        """Runs a command of podman that must succeed; returns what it printed on stdout."""
        done = self.ask(*words)
        assert done.returncode == 0, f"{words}: {done.stdout[-5000:]}{done.stderr[-5000:]}"
        return done.stdout.strip()

    def import_base(self, debian: Path, name: str) -> None:
        """Makes an image of a root, with ``python`` where the official image has it."""
        packed = self._folder / "base.tar"
        container.run(["tar", f"--directory={debian}", f"--file={packed}", "--create", "."])
        with tarfile.open(packed, "a") as archive:
            link = tarfile.TarInfo("./usr/local/bin/python")
            link.type, link.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
            archive.addfile(link)
        self.do("import", packed, name)
        packed.unlink()

    def build(self, name: str, *options: str) -> None:
        """Builds the Dockerfile of this repository."""
        fixed = ("--network=host", "--pull=never", "--format=docker", *LIMITS)
        self.do("build", *fixed, *self._packages(), *options, f"--tag={name}", str(ROOT))

    def _packages(self) -> list[str]:
        """Options that let pip reach its packages in a build, as it does on this machine."""
        variables, shown = container.pip_settings()
        settings = "".join(
            f"{name.removeprefix('PIP_').lower().replace('_', '-')} = {value}\n"
            for name, value in variables.items()
            if name.startswith("PIP_")
        )
        file = self._folder / "pip.conf"
        file.write_text(f"[global]\n{settings}")
        paths = [each.removeprefix("--bind-ro=") for each in shown]
        return [
            *(f"--volume={path}:{path}:ro" for path in paths),
            f"--volume={file}:/root/.config/pip/pip.conf:ro",
        ]

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine knows of an image or a container."""
        [described] = json.loads(self.do("inspect", name))
        return dict(described)

    @contextmanager
    def running(self, image: str, *options: str, words: Sequence[str] = ()) -> Iterator["Running"]:
        """A container for the length of the block."""
        name = f"signer-{os.urandom(4).hex()}"
        guide = (*AS_THE_GUIDE_SAYS, "--network=host", *LIMITS, *options)
        self.do("run", "--detach", f"--name={name}", *guide, image, *words)
        try:
            yield Running(self, name)
        finally:
            self.ask("rm", "--force", "--time=0", name)

    def close(self) -> None:
        """Removes the storage."""
        self.ask("system", "reset", "--force")
        shutil.rmtree(self._folder, ignore_errors=True)


class Running:
    """A container that runs, or has run."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name

    @property
    def pid(self) -> int:
        """Process 1, as this machine numbers it."""
        return int(self.engine.inspect(self.name)["State"]["Pid"])

    def does(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it."""
        return self.engine.ask("exec", self.name, *words)

    def healthy(self) -> bool:
        """Whether the image's own health check, run by the engine, succeeds."""
        return self.engine.ask("healthcheck", "run", self.name).returncode == 0

    def log(self) -> str:
        done = self.engine.ask("logs", self.name)
        return f"{done.stdout}{done.stderr}"

    def wait(self, happened: Callable[[], bool], what: str, seconds: float = 300) -> None:
        """Waits until something is so, while the container runs."""
        end = time.monotonic() + seconds
        while not happened():
            state = self.engine.inspect(self.name)["State"]
            alive = state["Running"] and time.monotonic() < end
            assert alive, f"{what}: {state}\n{self.log()[-3000:]}"
            time.sleep(0.5)

    def stop(self, *options: str) -> tuple[int, float]:
        """Stops it as ``docker stop`` does; returns its exit code and the seconds it took."""
        begun = time.monotonic()
        self.engine.do("stop", *options, self.name)
        return int(self.engine.inspect(self.name)["State"]["ExitCode"]), time.monotonic() - begun
