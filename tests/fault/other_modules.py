"""Tokens of other PKCS#11 modules: SoftHSM behind a socket, as an HSM in the network is, and
openCryptoki's software token, which locks itself after wrong PINs."""

import ctypes
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from signer.algorithms import Algorithm
from signer.config.models import TokenConfig
from signer.tools.dev import softhsm
from tests.daemon import until
from tests.fault.shim import Shim
from tests.integration.hsm_token import SoftToken, TestedToken, pin_file

ELLIPTIC = [(Algorithm.ES256, 0), (Algorithm.ES384, 0)]  # p11-kit 0.24 does not pass EdDSA on
RSA = [(Algorithm.RS256, 2048), (Algorithm.PS256, 2048), (Algorithm.RS256, 3072)]
_CLONE_FS, _CLONE_NEWNS, _CLONE_NEWIPC = 0x200, 0x20000, 0x8000000
_ALONE = ("unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child")
_OPENCRYPTOKI_FOLDERS = ("/etc/opencryptoki", "/var/lib/opencryptoki", "/run/lock/opencryptoki")
_OPENCRYPTOKI = "version opencryptoki-3.1\nslot 3\n{\nstdll = libpkcs11_sw.so\n}\n"


def library(name: str) -> Path:
    """A module's library; skips the test where its package is not installed."""
    for folder in Path("/usr/lib").glob("*-linux-gnu*/pkcs11"):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is not installed: `.ci/packages tests` installs it")


class P11KitServer:
    """``p11-kit server`` for SoftHSM: an HSM in the network, which can stop and come back."""

    def __init__(self, socket: Path, environment: dict[str, str]) -> None:
        """``environment`` is that of SoftHSM. A path of a socket has at most 107 characters."""
        self.client = library("p11-kit-client.so")
        self.socket = socket
        self._environment = {**os.environ, **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def environment(self, control: Path) -> dict[str, str]:
        """What a worker needs that loads the shim, to reach this server."""
        shim = Shim(control, module=self.client)
        return {**shim.environment, "P11_KIT_SERVER_ADDRESS": f"unix:path={self.socket}"}

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        module = str(softhsm.find_module())
        arguments = ("--provider", module, "--name", str(self.socket), "pkcs11:")
        self.process = subprocess.Popen(
            ["p11-kit", "server", "--foreground", *arguments],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(self.socket.exists, "the server of the module listens")

    def signal(self, number: int) -> None:
        """Sends a signal to the server and to the processes that serve its connections."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Takes the HSM off the network: all connections break."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class RemoteToken(TestedToken):
    """A token of SoftHSM behind a socket.

    Workers load the client of p11-kit through the shim, which has one function list for all
    who ask; the client itself is refused.
    """

    kinds = ELLIPTIC + RSA

    def __init__(self, folder: Path, shim: Path) -> None:
        """``shim`` is shim.c, compiled."""
        self.far = SoftToken(folder / "far")
        self.environment = dict(self.far.settings.environment)
        self.server = P11KitServer(folder / "socket", self.environment)
        self.server.start()
        near = {"module": shim, "environment": self.server.environment(folder / "shim")}
        super().__init__(self.far.settings.model_copy(update=near), folder / "state")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Does nothing: everybody sees the socket."""
        yield

    def close(self) -> None:
        self.server.kill()


class OpenCryptoki(TestedToken):
    """openCryptoki's software token, in file systems and shared memory of its own.

    Whatever is to see it runs inside ``with token.inside()``, in the main thread or in threads
    and processes that are made there.
    """

    kinds = RSA
    SO_PIN = "87654321"

    def __init__(self, folder: Path) -> None:
        module = library("libopencryptoki.so")
        if subprocess.run([*_ALONE, "true"], check=False, capture_output=True).returncode:
            pytest.skip("openCryptoki needs file systems of its own: run the tests as root")
        pin = f"{secrets.randbelow(10**8):08}"  # 4 to 8 characters
        (folder / "etc").mkdir(parents=True)
        (folder / "etc/opencryptoki.conf").write_text(_OPENCRYPTOKI)
        for name in ("lib/swtok/TOK_OBJ", "lock/swtok"):
            (folder / name).mkdir(parents=True)
        self._holder = self._start(folder)
        self.tool = ("pkcs11-tool", "--module", str(module), "--slot", "3")
        serial = self._init(pin)
        values = {
            "label": softhsm.LABEL,
            "serial": serial,
            "module": str(module),
            "pin_file": str(pin_file(folder, pin)),
            "workers": 1,
        }
        settings = TokenConfig.model_validate(values, context={"directory": folder})
        super().__init__(settings, folder / "state")

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        mounts = zip(("etc", "lib", "lock"), _OPENCRYPTOKI_FOLDERS, strict=True)
        script = " && ".join(
            (
                "mount --make-rprivate /",
                f"mkdir -p {' '.join(_OPENCRYPTOKI_FOLDERS)}",
                f"chgrp -R pkcs11 {folder} && chmod -R g+rwX {folder}",
                *(f"mount --bind {folder / name} {target}" for name, target in mounts),
                f"pkcsslotd && touch {folder}/ready && exec sleep infinity",
            )
        )
        with (folder / "errors").open("wb") as errors:
            holder = subprocess.Popen([*_ALONE, "sh", "-c", script], stdout=errors, stderr=errors)
        until((folder / "ready").exists, "openCryptoki's daemon runs")
        return holder

    def _init(self, pin: str) -> str:
        with self.inside():
            self._run("--init-token", "--label", softhsm.LABEL, "--so-pin", self.SO_PIN)
            so = ("--login", "--login-type", "so", "--so-pin", self.SO_PIN)
            self._run(*so, "--init-pin", "--pin", "11111111")
            self._run("--login", "--pin", "11111111", "--change-pin", "--new-pin", pin)
            shown = self._run("--list-slots")
        return shown.partition("serial num")[2].partition(":")[2].split("\n")[0].strip()

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self.tool, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def flags(self) -> str:
        """The token's flags in words."""
        with self.inside():
            shown = self._run("--list-slots")
        return shown.partition("token flags")[2].split("\n")[0]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Enters the file systems and the shared memory of the token, and leaves them."""
        [child] = _children(self._holder.pid)
        here, folder = "/proc/self/ns", Path.cwd()
        back = [os.open(f"{here}/{name}", os.O_RDONLY) for name in ("mnt", "ipc")]
        there = [os.open(f"/proc/{child}/ns/{name}", os.O_RDONLY) for name in ("mnt", "ipc")]
        try:
            _enter(there)
            os.chdir(folder)
            yield
        finally:
            _enter(back)
            os.chdir(folder)
            for file in (*back, *there):
                os.close(file)

    def close(self) -> None:
        self._holder.kill()  # it blocks SIGTERM; all that it holds ends with it
        self._holder.wait()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _enter(namespaces: list[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for call, arguments in (
        (libc.unshare, (_CLONE_FS,)),
        (libc.setns, (namespaces[0], _CLONE_NEWNS)),
        (libc.setns, (namespaces[1], _CLONE_NEWIPC)),
    ):
        if call(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
