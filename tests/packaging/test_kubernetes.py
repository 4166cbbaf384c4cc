"""config/kubernetes: right in form, right with each other, and what they start does serve."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import sqlalchemy as sa
import yaml

from signer.client._channels import SERVICE_CONFIG
from signer.config.models import Config, load_config
from signer.tools.dev import key_plan as plan
from signer.tools.dev import pki, softhsm, texts
from tests.ports import free_ports

FOLDER = Path(__file__).parents[2] / "config" / "kubernetes"
VERSIONS = ("1.31.0", "1.37.0")
"""Of Kubernetes, the oldest and the newest that the manifests are meant for."""
SIGNER = [sys.executable, "-P", "-m", "signer"]
DATA = "/var/lib/signer"


@cache
def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def one(kind: str, *names: str) -> dict[str, Any]:
    [found] = [each for name in names for each in read(name) if each["kind"] == kind]
    return dict(found)


STATEFUL_SET, SERVICE, BUDGET, NETWORK = (
    one(kind, "appliances.yaml")
    for kind in ("StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy")
)

JOBS = [one("Job", "begin.yaml"), one("Job", "join.yaml")]
PODS = [each["spec"]["template"]["spec"] for each in (STATEFUL_SET, *JOBS)]
POD = PODS[0]
[CONTAINER] = POD["containers"]
FILES: dict[str, str] = one("ConfigMap", "configuration.yaml")["data"]
INSTANCES = [f"signer-{n}" for n in range(STATEFUL_SET["spec"]["replicas"])]


@pytest.fixture
def configurations(tmp_path: Path) -> list[Config]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return [load_config(tmp_path / f"{instance}.yaml") for instance in INSTANCES]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_every_object_fits_its_schema(name: str, version: str) -> None:
    for each in read(name):
        kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_finds_a_mistake() -> None:
    wrong = {**STATEFUL_SET, "spec": {**STATEFUL_SET["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("pod", PODS)
def test_pods_have_no_rights(pod: dict[str, Any]) -> None:
    """What the standard `restricted` demands, and a root that is read only."""
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("pod", PODS[1:])
def test_jobs_begin_what_the_pods_go_on_with(pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    assert pod["securityContext"] == POD["securityContext"]
    assert volume(pod, "configuration") == volume(POD, "configuration")
    assert mounts(container).items() >= mounts(CONTAINER).items()
    images = [each["image"] for each in [*pod["initContainers"], container]]
    assert set(images) == {CONTAINER["image"]}
    [password] = container["env"]
    assert password in CONTAINER["env"]


def test_jobs_fill_the_volumes_that_the_pods_take() -> None:
    [template] = STATEFUL_SET["spec"]["volumeClaimTemplates"]
    for instance, job, name in zip(INSTANCES, JOBS, ("begin.yaml", "join.yaml"), strict=True):
        claim = one("PersistentVolumeClaim", name)
        expected = f"{template['metadata']['name']}-{instance}"
        assert claim["metadata"]["name"] == expected
        assert claim["spec"] == template["spec"]
        pod = job["spec"]["template"]["spec"]
        assert volume(pod, "data")["persistentVolumeClaim"]["claimName"] == expected


def test_instances_differ_in_their_origin_alone(configurations: list[Config]) -> None:
    assert sorted(FILES) == [f"{instance}.yaml" for instance in INSTANCES]
    origins = {each.audit.origin for each in configurations}
    assert len(origins) == len(INSTANCES)
    texts = {
        text.replace(f"signer.example/{name.removesuffix('.yaml')}", "ORIGIN")
        for name, text in FILES.items()
    }
    assert len(texts) == 1


def test_ports_are_those_of_the_configuration(configurations: list[Config]) -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for each in configurations:
        assert (each.listen.host, each.metrics.host) == ("0.0.0.0", "0.0.0.0")  # noqa: S104
        assert ports == {"grpc": each.listen.port, "metrics": each.metrics.port}
    [service] = SERVICE["spec"]["ports"]
    assert (service["port"], service["targetPort"]) == (ports["grpc"], "grpc")
    rules = NETWORK["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == list(ports.values())
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert CONTAINER[kind]["httpGet"]["port"] == "metrics"


def test_all_that_is_written_is_on_the_volume(configurations: list[Config]) -> None:
    assert mounts(CONTAINER) == {"configuration": "/etc/signer", "data": DATA}
    for each in configurations:
        for path in (each.policy, each.state, each.audit.directory):
            assert path.is_relative_to(DATA)
        assert each.registry.startswith("postgresql+psycopg://")


def test_a_pod_has_time_to_stop(configurations: list[Config]) -> None:
    for each in configurations:
        assert POD["terminationGracePeriodSeconds"] > each.limits.stop_seconds


def test_calls_are_taken_until_the_probes_have_noticed(configurations: list[Config]) -> None:
    probe = CONTAINER["readinessProbe"]
    for each in configurations:
        noticed = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
        assert each.limits.drain_notice_seconds > noticed


def test_the_guide_has_clients_balance_as_ours_does() -> None:
    guide = (FOLDER.parents[1] / "docs" / "packaging.md").read_text()
    shown = guide.partition("```json\n")[2].partition("```")[0]
    assert json.loads(shown) == json.loads(SERVICE_CONFIG)


def test_everything_selects_the_same_pods() -> None:
    labels = STATEFUL_SET["spec"]["template"]["metadata"]["labels"]
    assert STATEFUL_SET["spec"]["selector"] == {"matchLabels": labels}
    assert SERVICE["spec"]["selector"] == labels
    assert BUDGET["spec"]["selector"]["matchLabels"] == labels
    assert NETWORK["spec"]["podSelector"]["matchLabels"] == labels
    for job in JOBS:
        assert job["spec"]["template"]["metadata"]["labels"] != labels


# --- what they start ----------------------------------------------------------------------------


class Site:
    """What the manifests take from elsewhere: token, certificates, PIN, database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = sa.make_url(url)
        (folder / "token").mkdir(parents=True)
        conf = folder / "softhsm2.conf"
        conf.write_text(texts.SOFTHSM_CONF.format(tokens=folder / "token"))
        module = softhsm.find_module()
        softhsm.init_token(module, conf, pin="4711", so_pin="4712")
        self.token = {
            "label": softhsm.LABEL,
            "module": str(module),
            "environment": {"SOFTHSM2_CONF": str(conf)},
        }
        pki.server(folder, pki.authority(folder, "ca", "Servers"))
        clients = pki.authority(folder, "client-ca", "Clients")
        for name in plan.OFFICERS:
            pki.client(folder, clients, name, plan.principal(name))
        (folder / "pin").write_text("4711\n")
        (folder / "pin").chmod(0o400)
        self.files = {
            "/etc/signer/tls/server.pem": folder / "server.pem",
            "/etc/signer/tls/server.key": folder / "server.key",
            "/etc/signer/tls/clients-ca.pem": folder / "client-ca.pem",
            "/etc/signer/pin": folder / "pin",
            "/begin/officers/an.pem": folder / f"{plan.OFFICERS[0]}.pem",
            "/begin/officers/binh.pem": folder / f"{plan.OFFICERS[1]}.pem",
            "/begin/policy/policy.yaml": FOLDER.parent / "policy" / "policy.yaml",
        }


class Instance:
    """One pod: its files where the manifests put them, below a folder, and its processes."""

    def __init__(self, folder: Path, site: Site, name: str) -> None:
        self.root, self.name = folder / name, name
        self._environment = {**os.environ, "PGPASSWORD": str(site.url.password)}
        self.at(DATA).mkdir(parents=True)
        for target, source in site.files.items():
            self.at(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, self.at(target))
        port, self.metrics = free_ports()
        settings = yaml.safe_load(FILES[f"{name}.yaml"].replace(DATA, str(self.at(DATA))))
        settings["tokens"][0].update(site.token)
        settings["limits"]["drain_notice_seconds"] = 0  # nobody is sent elsewhere here
        settings |= {
            "listen": f"127.0.0.1:{port}",
            "metrics": f"127.0.0.1:{self.metrics}",
            "registry": str(site.url._replace(password=None)),
        }
        self.at(f"/etc/signer/{name}.yaml").write_text(yaml.safe_dump(settings))
        self._process: subprocess.Popen[bytes] | None = None

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def begin(self, job: dict[str, Any]) -> None:
        """Runs a Job's containers."""
        pod = job["spec"]["template"]["spec"]
        [container] = pod["containers"]
        commands = [each["command"] for each in pod["initContainers"]]
        for command in [*commands, [*SIGNER, *container["args"]]]:
            self.run(command)

    def run(self, command: list[str]) -> None:
        """Runs a command as in a container; it must succeed."""
        done = subprocess.run(
            self._here(command), env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Starts the container of the StatefulSet."""
        arguments = [each.replace("$(POD_NAME)", self.name) for each in CONTAINER["args"]]
        with self.at("/log").open("wb") as log:
            self._process = subprocess.Popen(
                [*SIGNER, *self._here(arguments)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(POD["terminationGracePeriodSeconds"])

    def get(self, path: str) -> tuple[int, str]:
        """Asks as a probe does; 0 while nobody listens."""
        assert self._process is not None
        assert self._process.poll() is None, self.at("/log").read_text()[-3000:]
        connection = HTTPConnection("127.0.0.1", self.metrics, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def _here(self, words: list[str]) -> list[str]:
        for path in ("/begin", "/etc/signer", DATA):
            words = [word.replace(path, str(self.at(path))) for word in words]
        return words


@pytest.fixture(scope="module")
def instances(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Instance]]:
    folder = tmp_path_factory.mktemp("pods")
    site = Site(folder / "site", postgres.database())
    pods = [Instance(folder, site, name) for name in INSTANCES]
    for pod, job in zip(pods, JOBS, strict=True):
        pod.begin(job)
    for pod in pods:
        pod.start()
    yield pods
    assert [pod.stop() for pod in pods] == [0, 0]


def test_what_the_manifests_start_answers_its_probes(instances: list[Instance]) -> None:
    for pod in instances:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = CONTAINER[probe]["httpGet"]["path"]
            end = time.monotonic() + 120
            while (answer := pod.get(asked))[0] != 200:
                assert time.monotonic() < end, (pod.name, asked, answer)
                time.sleep(0.05)
        assert "signer_ready 1.0" in pod.get("/metrics")[1]


def test_each_instance_has_begun_a_log_of_its_own(instances: list[Instance]) -> None:
    for pod in instances:
        audit = f"{DATA}/audit"
        end = time.monotonic() + 120
        while not pod.at(f"{audit}/checkpoints/newest").exists():  # made once it serves
            assert time.monotonic() < end, pod.at("/log").read_text()[-3000:]
            time.sleep(0.05)
        origin = yaml.safe_load(FILES[f"{pod.name}.yaml"])["audit"]["origin"]
        command = [*SIGNER, "audit", "verify", "--dir", audit, "--key", f"{audit}/audit.pub.pem"]
        pod.run([*command, "--origin", origin])


def volume(pod: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [each for each in pod["volumes"] if each["name"] == name]
    return dict(found)


def mounts(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
