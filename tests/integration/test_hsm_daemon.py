"""The running daemon and its HSM: who holds what, keys made meanwhile, and outside verifiers."""

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from signer.client._errors import NotFoundError
from signer.hsm.mechanisms import P256_ORDER
from tests.daemon import kill_workers, until
from tests.integration import officers

Make = Callable[..., Any]
RECORDS = "facilities/01-001/keys/records"
RSA = "facilities/01-001/keys/records-rs256"


def workers(appliance: Any) -> list[psutil.Process]:
    children = psutil.Process(appliance.process.pid).children(recursive=True)
    return [child for child in children if "signer.hsm.worker" in child.cmdline()]


def libraries(pid: int) -> set[str]:
    """Names of the files that a process maps."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]).name for line in lines if len(line.split()) > 5}


def test_the_front_process_maps_no_pkcs11(appliance: Any) -> None:
    with appliance.client() as client:
        assert client.sign_batch(RECORDS, "MESSAGE", [b"m"])[0].ok
    front = libraries(appliance.process.pid)
    assert any(name.startswith(("libc.so", "libc-")) for name in front)
    assert not [name for name in front if "softhsm" in name or "pkcs11" in name]


def test_workers_do_map_it(appliance: Any) -> None:
    found = workers(appliance)
    assert len(found) == 2
    for worker in found:
        try:
            names = libraries(worker.pid)
        except PermissionError:
            pytest.skip("workers are not dumpable: only root may look")
        assert any("softhsm" in name for name in names)


def test_workers_leave_no_core_and_cannot_be_traced(appliance: Any) -> None:
    for worker in workers(appliance):
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        [core] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]
        # What is not dumpable belongs to root, whoever runs it.
        assert Path(f"/proc/{worker.pid}/environ").stat().st_uid == 0


@contextmanager
def opens(path: Path) -> Iterator[Callable[[], int]]:
    """Counts how often a file is opened, by anybody (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Two events alike, one behind the other, come as one: the closing stands between.
    in_open, in_close, nonblocking = 0x20, 0x10, 0o4000
    descriptor = libc.inotify_init1(nonblocking)
    assert descriptor >= 0
    counted = 0

    def count() -> int:
        nonlocal counted
        while True:
            try:
                events = os.read(descriptor, 65536)
            except BlockingIOError:
                return counted
            head = struct.Struct("iIII")
            at = 0
            while at < len(events):
                _, mask, _, length = head.unpack_from(events, at)
                counted += bool(mask & in_open)
                at += head.size + length

    try:
        assert libc.inotify_add_watch(descriptor, os.fsencode(path), in_open | in_close) >= 0
        yield count
    finally:
        os.close(descriptor)


def test_only_workers_open_the_pin_file(make_appliance: Make) -> None:
    appliance = make_appliance(workers=3, start=False)
    pin = appliance.dir / "pin"
    with opens(pin) as count:
        pin.read_text()
        assert count() == 1  # it does count
        appliance.start()
        with appliance.client() as client:
            assert client.sign_batch(RECORDS, "MESSAGE", [b"m"])[0].ok
        until(lambda: "3.0" in metric(appliance, "signer_workers", "serving"), "all serve")
        assert count() == 1 + 3, "somebody besides the three workers has opened it"
        kill_workers(appliance.dir, workers(appliance)[0])
        until(lambda: "1.0" in metric(appliance, "signer_worker_restarts_total", "died"), "it left")
        until(lambda: "3.0" in metric(appliance, "signer_workers", "serving"), "all serve")
        assert count() == 1 + 4


def metric(appliance: Any, name: str, label: str) -> str:
    lines = appliance.get("/metrics")[1].splitlines()
    found = [line for line in lines if line.startswith(f"{name}{{") and f'"{label}"' in line]
    return "\n".join(found)


def create(appliance: Any, key: str, **arguments: Any) -> None:
    """Two officers make a key that signs at once."""
    officers.Office(appliance.dev).do("create-key", key=key, activate=True, **arguments)


def serves(client: Any, key: str) -> bool:
    try:
        return all(item.ok for item in client.sign_batch(key, "MESSAGE", [b"m"] * 300))
    except NotFoundError:
        return False


def test_keys_made_while_the_daemon_runs_are_served(make_appliance: Make) -> None:
    appliance = make_appliance(workers=2)
    before = workers(appliance)
    with appliance.client() as client:
        made: list[dict[str, Any]] = [{"algorithm": "ES256"}, {"algorithm": "PS256", "bits": 3072}]
        for number, arguments in enumerate(made):
            name = f"facilities/01-001/keys/new-{number}"
            assert not serves(client, name)
            create(appliance, name, **arguments)
            until(partial(serves, client, name), "it is served", 10)
    assert workers(appliance) == before


@pytest.mark.parametrize("lookup", ["index", "search"])
def test_a_key_that_is_made_signs_at_once_on_all_workers(make_appliance: Make, lookup: str) -> None:
    appliance = make_appliance(workers=3, start=False)
    config = appliance.dir / "signer.yaml"
    text = config.read_text()
    assert "key_lookup: index" in text
    config.write_text(text.replace("key_lookup: index", f"key_lookup: {lookup}"))
    appliance.start()
    key = "facilities/01-001/keys/new"

    def items() -> list[int]:
        with appliance.client("operator") as client:
            return [worker.items for worker in client.status().workers]

    create(appliance, key, algorithm="ES256")
    before = items()
    with appliance.client() as client:
        until(partial(serves, client, key), "it is served", 10)
        results = client.sign_batch(key, "MESSAGE", [b"m"] * 4000)
    assert all(item.ok for item in results)
    assert all(now > then for now, then in zip(items(), before, strict=True))


def test_keys_made_while_a_worker_is_replaced_are_served(make_appliance: Make) -> None:
    appliance = make_appliance(workers=2)
    with appliance.client() as client:
        for number in range(2):
            kill_workers(appliance.dir, *workers(appliance))
            name = f"facilities/01-002/keys/new-{number}"
            create(appliance, name, algorithm="ES256")
            until(partial(serves, client, name), "it is served", 10)


@pytest.mark.parametrize("key", [RECORDS, RSA])
def test_openssl_verifies(appliance: Any, tmp_path: Path, key: str) -> None:
    message = b"what was said"
    with appliance.client() as client:
        [item] = client.sign_batch(key, "MESSAGE", [message])
    signature = item.signature
    if key == RECORDS:
        half = len(signature) // 2
        r, s = int.from_bytes(signature[:half]), int.from_bytes(signature[half:])
        signature = encode_dss_signature(r, s)
    files = {"message": message, "other": b"what was not", "signature": signature}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def verify(signed: str) -> str:
        public, made = appliance.key(key)["public_key"], str(tmp_path / "signature")
        command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", made]
        done = subprocess.run(
            [*command, str(tmp_path / signed)], capture_output=True, check=False, text=True
        )
        return done.stdout.strip()

    assert verify("message") == "Verified OK"
    assert verify("other") == "Verification failure"


def test_two_hundred_signatures_have_a_low_s_and_no_nonce_twice(appliance: Any) -> None:
    public = load_pem_public_key(Path(appliance.key(RECORDS)["public_key"]).read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    messages = [b"message %d" % number for number in range(220)]
    with appliance.client() as client:
        results = client.sign_batch(RECORDS, "MESSAGE", messages)
    halves = set()
    for message, result in zip(messages, results, strict=True):
        assert result.ok
        assert len(result.signature) == 64
        r, s = (int.from_bytes(result.signature[at : at + 32]) for at in (0, 32))
        assert 0 < s <= P256_ORDER // 2
        public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        halves.add(r)
    assert len(halves) == len(messages)


@pytest.mark.torture
def test_thousands_of_keys_are_made_and_served(make_appliance: Make) -> None:
    appliance = make_appliance(workers=2, facilities=2500)
    with appliance.client() as client:
        for number in range(1, 2501):
            name = f"facilities/l-{number:05}/keys/records"
            assert client.sign_batch(name, "MESSAGE", [b"m"])[0].ok
        kill_workers(appliance.dir, *workers(appliance))
        for number in range(1, 2501, 5):
            name = f"facilities/l-{number:05}/keys/records"
            assert client.sign_batch(name, "MESSAGE", [b"m"])[0].ok
        create(appliance, "facilities/l-00001/keys/new", algorithm="ES256")
        until(lambda: serves(client, "facilities/l-00001/keys/new"), "it is served", 10)
