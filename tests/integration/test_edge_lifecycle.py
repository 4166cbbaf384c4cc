"""Starts that are refused, and ends that lose nothing."""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import yaml
from grpc_health.v1 import health_pb2

from signer.audit.format.record import CLOSING, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.v1 import signing_pb2
from tests.commands import signer
from tests.daemon import verified
from tests.integration import edge, outputs


def refused(config: Path) -> str:
    """The text of a refusal: exit code 1, no traceback, and no worker left behind."""
    done = signer("serve", "--config", config)
    assert (done.code, done.out) == (1, ""), done.err
    assert "Traceback" not in done.err
    return done.err


def copied(appliance: Any, folder: Path, **changes: Any) -> Path:
    """The appliance's configuration at another place, with changes."""
    config = yaml.safe_load((appliance.dir / "signer.yaml").read_text())
    home = appliance.dir
    config["tls"] = {name: str(home / path) for name, path in config["tls"].items()}
    config |= {name: str(home / config[name]) for name in ("policy", "state", "client")}
    config["registry"] = f"sqlite:///{home}/registry.sqlite"
    [token] = config["tokens"]
    token["pin_file"] = str(home / "pin")
    token["environment"] = {
        "SOFTHSM2_CONF": str(home / "softhsm2.conf"),
        "STARTED_IN": str(folder),  # tells its workers from those of the appliance
    }
    # A log of its own, which may lack the last records: so without what was signed of them.
    ignored = shutil.ignore_patterns("lock", "ballast", "checkpoints")
    shutil.copytree(home / "audit", folder / "audit", ignore=ignored)
    config |= {"metrics": "127.0.0.1:0", "listen": "127.0.0.1:0"} | changes
    path = folder / "signer.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def children(appliance: Any) -> list[psutil.Process]:
    return psutil.Process(appliance.process.pid).children(recursive=True)


def test_a_second_daemon_on_the_port_is_refused(
    appliance: Any, issuer: edge.Stubs, tmp_path: Path
) -> None:
    address = appliance.dev["address"]
    text = refused(copied(appliance, tmp_path, listen=address))
    assert f"signer: cannot listen on {address}: it is in use" in text
    assert "change `listen`" in text
    assert workers_of(tmp_path) == 0
    assert workers_of(appliance.dir) == 2
    assert len(issuer.sign().signatures) == 1


def workers_of(folder: Path) -> int:
    """How many workers live whose environment names something in this folder."""
    return sum(
        "signer.hsm.worker" in (process.info["cmdline"] or ())
        and any(value.startswith(str(folder)) for value in (process.info["environ"] or {}).values())
        for process in psutil.process_iter(["cmdline", "environ"])
    )


def test_a_metrics_port_in_use_is_refused(appliance: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = refused(copied(appliance, tmp_path, metrics=address))
    assert f"signer: cannot serve metrics on {address}" in text
    assert "change `metrics`" in text


def test_a_start_that_is_refused_before_there_are_workers_says_why(
    appliance: Any, tmp_path: Path
) -> None:
    """The policy in force must be kept beside the log before anything is signed under it."""
    config = copied(appliance, tmp_path)
    kept = tmp_path / "audit" / "policies"
    shutil.rmtree(kept)
    kept.touch()
    assert f"signer: the policy cannot be kept in {kept} (File exists)" in refused(config)


OPEN_AFTER_A_REFUSAL = """
import pathlib, sys, psutil
from signer import daemon
from signer.errors import OperatorError
try:
    daemon.run(pathlib.Path(sys.argv[1]))
except OperatorError as error:  # while it lives, so does the half-made appliance
    print(error, [file.path for file in psutil.Process().open_files()], sep="\\n")
"""


def test_a_refused_start_closes_registry_and_log(appliance: Any, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    config = copied(appliance, tmp_path, state=str(tmp_path / "a-file" / "state"))
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AFTER_A_REFUSAL, str(config)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    text, files = done.stdout.splitlines()
    assert text.startswith("the folder of latches and locks cannot be created")
    assert files == "[]"


def no_state(folder: Path) -> dict[str, Any]:
    (folder / "a-file").touch()
    return {"tls": {name: str(folder / "absent") for name in ("certificate", "key", "client_ca")}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda _: {"listne": "127.0.0.1:1"}, "listne: "),
        (lambda _: {"limits": {"calls": 0}}, "limits.calls: "),
        (lambda _: {"tokens": []}, "tokens: "),
        (no_state, "tls.certificate: "),
        (lambda folder: {"registry": f"sqlite:///{folder}/absent.sqlite"}, "absent.sqlite"),
    ],
    ids=["unknown", "limit", "no-token", "tls", "registry"],
)
def test_a_wrong_configuration_ends_the_start_before_anything_listens(
    appliance: Any, tmp_path: Path, change: Callable[[Path], dict[str, Any]], field: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    address = {"listen": f"127.0.0.1:{port}"}
    text = refused(copied(appliance, tmp_path, **(address | change(tmp_path))))
    assert field in text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("content", ["", "]", "a: &x 1\nb: *x\n"])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    path = tmp_path / "signer.yaml"
    path.write_text(content)
    assert f"{path} is refused" in refused(path)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    assert "absent.yaml is refused:\n  cannot be read: No such file" in (
        refused(tmp_path / "absent.yaml")
    )
    assert "cannot be read: Is a directory" in refused(tmp_path)


def test_sigterm_tells_health_first_and_lets_workers_leave_last(
    make_appliance: Callable[..., Any],
) -> None:
    made = make_appliance(workers=2, config={"limits": {"drain_notice_seconds": 60}})
    workers = children(made)
    assert len(workers) >= 2
    with edge.connect(made.dev) as issuer, edge.connect(made.dev, "operator") as operator:
        watcher = operator.health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING
        made.process.send_signal(signal.SIGTERM)
        assert next(watcher).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # Who has not heard of it yet is answered; what asks for a reason hears it.
        assert len(issuer.sign().signatures) == 1
        assert edge.status(operator).reasons == ["the daemon is stopping"]
        assert made.get("/readyz") == (503, "the daemon is stopping\n")
        at_work = issuer.signing.SignBatch.future(long_batch(), timeout=60)
        edge.until(lambda: edge.status(operator).queued_items > 0, "the batch is at work")
        made.process.send_signal(signal.SIGTERM)  # the notice is over
        edge.until(lambda: not answers(issuer), "new calls are refused")
        response = at_work.result()
        assert not response.failures
        for signature in (response.signatures[0], response.signatures[-1]):
            outputs.check_raw(made.key("01-001/records-rsa"), signature, b"message")
        # A watch does not hold the daemon up for `drain_seconds`: it ends, too.
        assert next(watcher, None) is None
        assert made.process.wait(timeout=15) == 0
    assert made.stop() == 0
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    host, _, port = made.dev["address"].partition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
    assert '"event": "stopped"' in made.log.read_text()
    # A worker has signed the last checkpoint when nothing could come any more.
    audit = made.dir / "audit"
    reader = Reader(list_segments(audit))
    [last] = reader.records(reader.size - 1, reader.size)
    assert last.kind is RecordKind.STOP
    assert int((audit / "checkpoints" / "newest").read_text().splitlines()[1]) == reader.size


def long_batch() -> signing_pb2.SignBatchRequest:
    """Takes about a second."""
    return signing_pb2.SignBatchRequest(
        key=edge.RSA, format="FORMAT_MESSAGE", payloads=[b"message"] * 2500
    )


def answers(issuer: edge.Stubs) -> bool:
    try:
        return len(issuer.sign().signatures) == 1
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            raise
        return False


def test_what_outlasts_the_drain_is_cut_off_and_on_record(
    make_appliance: Callable[..., Any],
) -> None:
    made = make_appliance(config={"limits": {"drain_seconds": 0}})
    workers = children(made)
    with edge.connect(made.dev) as issuer, edge.connect(made.dev, "operator") as operator:
        # Time enough that the backlog refuses none of them, however slow the machine is.
        calls = [issuer.signing.SignBatch.future(long_batch(), timeout=600) for _ in range(8)]
        edge.until(lambda: edge.status(operator).queued_items > 2500, "they wait")
        assert made.stop() == 0
        codes = {call.code() for call in calls}
    assert codes - {grpc.StatusCode.OK}, "no call was cut off"
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert '"event": "bug"' not in made.log.read_text()
    # What was not released is closed.
    reader = Reader(list_segments(made.dir / "audit"))
    ends = [each.fields for each in reader.records(0, reader.size) if each.kind in CLOSING]
    assert sum(fields.get("reason") == "CALLER_GONE" for fields in ends) > 0
    assert verified(made.dir / "audit", "signer/audit")["open_intents"] == 0
    made.start()
    assert made.stop() == 0


def test_sigint_ends_it_as_well_and_it_starts_again(make_appliance: Callable[..., Any]) -> None:
    made = make_appliance()
    assert made.stop(signal.SIGINT) == 0
    made.start()
    with edge.connect(made.dev) as issuer:
        assert len(issuer.sign().signatures) == 1


def test_a_dead_front_process_leaves_no_worker(make_appliance: Callable[..., Any]) -> None:
    made = make_appliance()
    workers = children(made)
    assert made.stop(signal.SIGKILL) == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
