"""The Dockerfile built and run by podman with runc, as docs/packaging.md says: `make packaging`."""

import re
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml

from signer import __version__
from signer.tools.dev import key_plan, pki, reserve_ports, texts
from tests.commands import SIGNER
from tests.packaging import container
from tests.packaging.dockerfile import ROOT, STAGES
from tests.packaging.engine import LIMITS, Engine, Running

pytestmark = pytest.mark.packaging

USER = 10001
BASE = f"docker.io/library/{STAGES['build'][0].rest.split()[0]}"
KEY = "facilities/01-001/keys/new"
CONFIG = "/etc/signer/signer.yaml"
HSM = """\
FROM signer
COPY --from=signer-softhsm --chmod=0755 /usr/lib/softhsm/libsofthsm2.so /opt/hsm/lib/pkcs11.so
"""
"""The guide's own example, with SoftHSM's module in the place of a vendor's."""
IDLE, GREEDY = 100, 20
SIGNED = re.compile(r'signer_items_total\{[^}]*reason="ok"[^}]*\} [1-9]')


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the images of the guide."""
    made = Engine(tmp_path_factory.mktemp("engine"))
    try:
        made.import_base(container.debian(), BASE)
        made.build("signer")
        made.build("signer-softhsm", "--target=softhsm")
        recipe = tmp_path_factory.mktemp("hsm") / "Dockerfile"
        recipe.write_text(HSM)
        words = ("--pull=never", "--format=docker", *LIMITS, f"--file={recipe}", recipe.parent)
        made.do("build", "--network=host", *words[:-1], "--tag=signer-hsm", words[-1])
        yield made
    finally:
        made.close()


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def has_no_rights(running: Running) -> None:
    """Process 1, no capability, no way to gain one, and only the volume to write to."""
    status = status_of(running.pid)
    assert status["NSpid"][-1] == "1"
    assert set(status["Uid"] + status["Gid"]) == {str(USER)}
    assert {int(status[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert status["NoNewPrivs"] == ["1"]
    assert running.does("touch", "/var/lib/signer/written").returncode == 0
    for place in ("/opt/signer", "/etc", "/tmp", "/usr/local/bin", "/"):  # noqa: S108
        assert running.does("touch", f"{place}/written").returncode != 0, place


# --- the images -------------------------------------------------------------------------------


def test_the_image_holds_the_program_and_no_compiler(engine: Engine) -> None:
    said = engine.do("run", "--rm", *LIMITS, "--network=host", "signer", "--version")
    assert said == f"signer, version {__version__}"
    listed = engine.do(
        *("run", "--rm", *LIMITS, "--network=host", "--entrypoint=sh", "signer", "-c"),
        "ls /usr/bin /usr/local/bin /opt/signer/bin; ls -d /build;"
        " ls /opt/signer/lib/python3*/site-packages; true",
    ).split()
    assert not {"gcc", "cc", "make", "/build", "pytest", "selenium", "mypy"} & {*listed}
    assert {"grpc", "psycopg_binary", "opentelemetry"} <= {*listed}


def test_the_guide_says_how_large_it_is(engine: Engine) -> None:
    """Above the base image, whose size is its own; within a tenth."""
    guide = (ROOT / "docs/packaging.md").read_text()
    said = {name: int(size) for name, size in re.findall(r"`(signer[a-z-]*)` adds (\d+) MB", guide)}
    assert said.keys() == {"signer", "signer-softhsm"}
    base = engine.inspect(BASE)["Size"]
    for name, size in said.items():
        added = (engine.inspect(name)["Size"] - base) / 1e6
        assert abs(added - size) <= size / 10, f"{name} adds {added:.0f} MB"


def test_an_image_says_how_it_is_run(engine: Engine) -> None:
    for name in ("signer", "signer-softhsm"):
        config = engine.inspect(name)["Config"]
        assert (config["User"], config["StopSignal"]) == (f"{USER}:{USER}", "SIGTERM")
        assert [*config["Volumes"]] == ["/var/lib/signer"]


# --- to try it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial(engine: Engine) -> Iterator[Running]:
    with engine.running("signer-softhsm") as running:
        running.wait(running.healthy, "the image's health check")
        yield running


def test_the_trial_serves_without_rights(trial: Running) -> None:
    has_no_rights(trial)


def test_the_command_of_the_guide_asks_it(trial: Running) -> None:
    done = trial.does("signer", "health", "--client", "/var/lib/signer/client-operator.yaml")
    assert done.stdout.strip() == "SERVING"


def test_the_trial_drains_when_it_is_stopped(trial: Running) -> None:
    assert trial.stop("--time=60")[0] == 0, trial.log()[-2000:]


# --- for production ---------------------------------------------------------------------------


class Site:
    """/etc/signer and the volume of an appliance, and client files for this machine."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.etc, self.volume = folder / "etc", folder / "volume"
        self.address, self.metrics = (f"127.0.0.1:{port}" for port in reserve_ports())
        self._files()
        self._token()

    @property
    def options(self) -> tuple[str, str]:
        return (f"--volume={self.etc}:/etc/signer:ro", f"--volume={self.volume}:/var/lib/signer")

    def _files(self) -> None:
        made = self.folder / "pki"
        for folder in (made, self.etc / "tls", self.etc / "officers", self.volume / "policy"):
            folder.mkdir(parents=True)
        pki.server(made, pki.authority(made, "ca", "servers"))
        clients = pki.authority(made, "client-ca", "clients")
        for name in ("operator", "issuer", "officer-a", "officer-b"):
            pki.client(made, clients, name, key_plan.principal(name))
            text = texts.CLIENT.format(port=self.address.partition(":")[2], client=name)
            (self.folder / f"{name}.yaml").write_text(text)
        for name in ("server.pem", "server.key", "operator.pem", "operator.key"):
            shutil.copy(made / name, self.etc / "tls")
        shutil.copy(made / "client-ca.pem", self.etc / "tls/clients-ca.pem")
        shutil.copy(made / "ca.pem", self.etc / "tls/server-ca.pem")
        for name in ("officer-a", "officer-b"):
            shutil.copy(made / f"{name}.pem", self.etc / "officers")
        config = yaml.safe_load((ROOT / "config/systemd/signer.yaml").read_text())
        config |= {"listen": self.address, "metrics": self.metrics}
        config["tokens"][0] |= {"module": "/opt/hsm/lib/pkcs11.so", "pin_file": "pin"}
        self.configure(config)
        client = (ROOT / "config/client.yaml").read_text()
        (self.etc / "client.yaml").write_text(client.replace("127.0.0.1:7443", self.address))
        (self.volume / "policy/policy.yaml").write_text(texts.policy("token"))

    def configure(self, config: object) -> None:
        (self.etc / "signer.yaml").write_text(yaml.safe_dump(config))
        self._own()

    def _own(self) -> None:
        """Files as the guide's table has them: root's, read by the group of the container."""
        container.run(["chown", "-R", f"root:{USER}", str(self.etc)])
        container.run(["chmod", "-R", "u=rwX,g=rX,o=", str(self.etc)])
        container.run(["chown", "-R", f"{USER}:{USER}", str(self.volume)])
        container.run(["chmod", "700", str(self.volume)])

    def _token(self) -> None:
        pin = secrets.token_hex(8)
        (self.etc / "pin").write_text(pin)
        (self.volume / "token").mkdir()
        text = texts.SOFTHSM_CONF.format(tokens="/var/lib/signer/token")
        (self.etc / "softhsm2.conf").write_text(text)
        self._own()
        (self.etc / "pin").chmod(0o440)
        self.once(
            "signer-softhsm",
            *("--init-token", "--free", "--label=signer", f"--pin={pin}", "--so-pin=so-pin-of-it"),
            entrypoint="softhsm2-util",
        )
        officers = [f"--officer=/etc/signer/officers/officer-{name}.pem" for name in "ab"]
        self.once("signer-hsm", "init", f"--config={CONFIG}", *officers)

    def once(self, image: str, *words: str, entrypoint: str = "signer") -> str:
        """Runs a command in a container of its own, as the guide says for ``signer init``."""
        return self.engine.do(
            *("run", "--rm", "--network=host", "--read-only", "--cap-drop=ALL", *LIMITS),
            *(*self.options, "--env=SOFTHSM2_CONF=/etc/signer/softhsm2.conf"),
            *(f"--entrypoint={entrypoint}", image, *words),
        )

    @contextmanager
    def serving(self) -> Iterator[Running]:
        with self.engine.running("signer-hsm", "--ulimit=core=0", *self.options) as running:
            running.wait(running.healthy, "the image's health check")
            yield running

    def signer(self, *words: str, by: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command on this machine."""
        return subprocess.run(
            [*SIGNER, *words, f"--client={self.folder / by}.yaml"],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def operate(self, *words: str) -> None:
        made = self.signer("operations", "propose", *words, "--yes", "--id", by="officer-a")
        assert made.returncode == 0, made.stderr
        approve = ("operations", "approve", made.stdout.strip(), "--yes", "--wait")
        done = self.signer(*approve, by="officer-b")
        assert done.returncode == 0, done.stdout + done.stderr

    def sign(self, records: int = 1) -> list[str]:
        lines = "".join(f'{{"dose":{number}}}\n' for number in range(records))
        words = ("sign", "--key", KEY, "--format", "JWS", "--lines", "-")
        done = self.signer(*words, by="issuer", given=lines)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def page(self, path: str) -> tuple[int, str]:
        host, _, port = self.metrics.partition(":")
        connection = HTTPConnection(host, int(port), timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """An appliance for whose facility officers have made a key, in a container that has ended."""
    made = Site(engine, tmp_path_factory.mktemp("site"))
    with made.serving() as running:
        made.operate("create-key", KEY, "--algorithm", "ES256")
        made.operate("activate", f"{KEY}/versions/1")
        assert len(made.sign(3)) == 3
        assert running.stop("--time=120")[0] == 0
    return made


def test_what_officers_make_outlives_the_container(site: Site) -> None:
    with site.serving() as running:
        has_no_rights(running)
        [signed] = site.sign()
        assert signed.count(".") == 2
    said = site.once("signer-hsm", "audit", "verify", f"--config={CONFIG}")
    assert "in order" in said


def test_hup_reloads(site: Site) -> None:
    config = yaml.safe_load((site.etc / "signer.yaml").read_text())
    with site.serving() as running:
        site.configure(config | {"log_level": "debug"})
        site.engine.do("kill", "--signal=HUP", running.name)
        running.wait(lambda: '"event": "reloaded"' in running.log(), "the log says so", 60)
        assert running.healthy()
        key = site.etc / "tls/server.key"
        right = key.read_bytes()
        key.write_bytes((site.etc / "tls/operator.key").read_bytes())
        site.engine.do("kill", "--signal=HUP", running.name)
        running.wait(lambda: '"event": "reload_refused"' in running.log(), "it is refused", 60)
        assert running.healthy()
        key.write_bytes(right)
    site.configure(config)


def test_a_stop_under_load_drains_within_its_limit(site: Site) -> None:
    check = site.once("signer-hsm", "check", f"--config={CONFIG}")
    [limit] = re.findall(r"takes at most (\d+) s", check)
    assert int(limit) < 120, "what the guide gives it"
    ended: list[int] = []
    with site.serving() as running:
        callers = [
            threading.Thread(target=lambda: ended.append(len(site.sign(20_000)))) for _ in range(2)
        ]
        for caller in callers:
            caller.start()
        running.wait(lambda: SIGNED.search(site.page("/metrics")[1]) is not None, "they sign")
        code, seconds = running.stop("--time=120")
        assert (code, seconds < int(limit) + 5) == (0, True), running.log()[-2000:]
        assert '"event": "stopped"' in running.log()
        with site.serving():  # the callers, which try again, miss nothing
            for caller in callers:
                caller.join(120)
    assert ended == [20_000] * 2


def test_idle_and_greedy_connections_do_not_keep_probes_out(site: Site) -> None:
    host, _, port = site.metrics.partition(":")
    with site.serving() as running, ExitStack() as stack:
        for number in range(IDLE + GREEDY):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 30))
            if number >= IDLE:  # asks for much and reads nothing
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        for _ in range(3):
            assert site.page("/readyz") == (200, "ready\n")
            assert site.page("/metrics")[0] == 200
        assert running.healthy()
