"""The Dockerfile, carried out line by line in copies of an empty Debian: `make packaging`."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from signer import __version__
from tests.packaging import container
from tests.packaging.dockerfile import ROOT, Builder, Image

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Image]]:
    base = container.debian()
    folder = tmp_path_factory.mktemp("images")
    named = container.copy(base, folder / "python")
    (named / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    variables, options = container.pip_settings()
    yield Builder(named, folder, variables, options).build((ROOT / "Dockerfile").read_text())
    shutil.rmtree(folder)


def test_the_image_holds_the_program_and_no_compiler(images: dict[str, Image]) -> None:
    image = images["appliance"]
    said = container.inside(image.root, [*image.entrypoint, "--version"], *image.options())
    assert said.strip() == f"signer, version {__version__}"
    for name in ("gcc", "cc", "make"):
        assert not list(image.root.glob(f"usr/*bin/{name}"))
    assert not (image.root / "build").exists()
    packages = {path.name for path in image.root.glob("opt/signer/lib/python3*/site-packages/*")}
    assert {"grpc", "psycopg_binary", "opentelemetry"} <= packages
    assert not {"pytest", "selenium", "mypy"} & packages


class Trial:
    """The image with SoftHSM, as ``docker run --read-only --cap-drop ALL`` would run it."""

    def __init__(self, image: Image, volume: Path, running: container.Running) -> None:
        self.image, self.volume, self.running = image, volume, running

    def does(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container, as ``docker exec`` would."""
        return subprocess.run(
            self.running.enter(self.image.as_user(command), self.image.environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def healthy(self) -> bool:
        return self.does(list(self.image.health)).returncode == 0


@pytest.fixture(scope="module")
def trial(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    image, folder = images["softhsm"], tmp_path_factory.mktemp("trial")
    volume = container.copy(image.root / image.volume.lstrip("/"), folder / "volume")
    options = ["--read-only", f"--bind={volume}:{image.volume}", f"--kill-signal={image.stop}"]
    command = image.as_user([*image.entrypoint, *image.command])
    log = folder / "log"
    with container.running(image.root, log, *options, *image.options(), command=command) as running:
        made = Trial(image, volume, running)
        container.wait(made.healthy, f"the image's health check: {log}", 300)
        yield made


def test_it_serves_as_process_1_without_rights(trial: Trial) -> None:
    status = Path(f"/proc/{trial.running.leader}/status").read_text()
    values = {
        line.partition(":")[0]: line.partition(":")[2].split() for line in status.splitlines()
    }
    assert values["NSpid"][-1] == "1"
    assert set(values["Uid"] + values["Gid"]) == {"10001"}
    assert {int(values[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert values["NoNewPrivs"] == ["1"]


def test_it_can_write_to_its_volume_alone(trial: Trial) -> None:
    assert trial.does(["touch", "/var/lib/signer/written"]).returncode == 0
    for place in ("/opt/signer", "/tmp", "/etc", "/usr/local/bin"):  # noqa: S108
        done = trial.does(["touch", f"{place}/written"])
        assert done.returncode != 0, place
    assert (trial.volume / "written").stat().st_uid == 10001


def test_its_pages_say_that_it_is_ready(trial: Trial) -> None:
    address = json.loads((trial.volume / "dev.json").read_text())["metrics"]
    connection = HTTPConnection(address.removeprefix("http://"), timeout=10)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == 200


def test_the_signal_that_docker_sends_drains_it(trial: Trial) -> None:
    os.kill(trial.running.process.pid, signal.SIGTERM)  # nspawn passes on --kill-signal
    assert trial.running.process.wait(60) == 0, trial.running.said()
