"""The verifiers of others, as programs: called by the tests and by the demo."""

import fcntl
import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_VERIFY = Path(__file__).parent / "verify"
_VENV = ROOT / "build" / "verify-venv"


class RejectedError(Exception):
    """A verifier does not accept what it was given; the text is its own."""


def prepare() -> Path:
    """Makes the verifiers' own environment unless it is there; returns its Python.

    It is apart from ours because python-cwt needs an older cbor2 than we do. The
    stamp is written last, so that an interrupted installation is done again; of tests that run
    at the same time one makes it, and the others wait.
    """
    pinned = _VERIFY / "requirements.lock"
    stamp, python = _VENV / "installed.sha256", _VENV / "bin" / "python"
    wanted = hashlib.sha256(pinned.read_bytes()).hexdigest()
    _VENV.parent.mkdir(exist_ok=True)
    with _VENV.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            venv.create(_VENV, clear=True, with_pip=True)
            _run([str(python), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(pinned)])
            stamp.write_text(wanted)
    return python


def hcert(texts: Sequence[str], certificate: Path) -> list[dict[str, Any]]:
    """Has python-cwt verify HC1 texts; returns their claims. Raises RejectedError."""
    return _judge("verify_hcert.py", [str(certificate)], texts)


def jws(tokens: Sequence[str], public_key: Path, algorithm: str) -> list[dict[str, Any]]:
    """Has jwcrypto verify compact JWS; returns headers and payloads. Raises RejectedError."""
    return _judge("verify_jws.py", [str(public_key), algorithm], tokens)


def proof(proof_file: Path, message: Path, audit_key: Path) -> dict[str, Any]:
    """Has hashlib and cryptography verify a proof of the audit log; returns what it proves.

    ``message`` holds the HC1 text or JWS that the proof is of. Raises RejectedError.
    """
    files = [str(path) for path in (audit_key, proof_file, message)]
    proven: dict[str, Any] = json.loads(_run(_python("verify_proof.py", files)))
    return proven


def openssl(message: bytes, signature: bytes, public_key: Path, algorithm: str) -> None:
    """Has the program openssl verify a raw signature. Raises RejectedError.

    ECDSA signatures are given as r||s; ``openssl`` wants DER.
    """
    digest = {"ES256": "sha256", "ES384": "sha384", "RS256": "sha256", "PS256": "sha256"}
    with tempfile.TemporaryDirectory() as folder:
        data, made = Path(folder) / "message", Path(folder) / "signature"
        data.write_bytes(message)
        made.write_bytes(_der(signature) if algorithm.startswith("ES") else signature)
        if algorithm == "EdDSA":
            command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey"]
            command += [str(public_key), "-in", str(data), "-sigfile", str(made)]
        else:
            command = ["openssl", "dgst", f"-{digest[algorithm]}", "-verify", str(public_key)]
            if algorithm == "PS256":
                command += ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"]
            command += ["-signature", str(made), str(data)]
        _run(command)


def _der(raw: bytes) -> bytes:
    """r||s as DER (RFC 3279, section 2.2.3), for curves up to P-384: short lengths only."""
    numbers = b""
    for half in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
        value = int.from_bytes(half)
        content = value.to_bytes(value.bit_length() // 8 + 1)
        numbers += bytes([0x02, len(content)]) + content
    return bytes([0x30, len(numbers)]) + numbers


def _judge(program: str, arguments: Sequence[str], lines: Sequence[str]) -> list[dict[str, Any]]:
    said = _run(_python(program, arguments), "".join(f"{line}\n" for line in lines))
    verdicts = [json.loads(line) for line in said.splitlines()]
    if len(verdicts) != len(lines):
        raise RejectedError(f"{program} verified {len(verdicts)} of {len(lines)}")
    return verdicts


def _python(program: str, arguments: Sequence[str]) -> list[str]:
    # -I: neither our packages nor our folder are in its sight.
    return [str(prepare()), "-I", str(_VERIFY / program), *arguments]


def _run(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RejectedError(f"{command[0]} says: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


if __name__ == "__main__":  # for the Makefile: the installation before the tests
    sys.stdout.write(f"{prepare()}\n")
