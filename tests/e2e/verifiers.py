"""The verifiers of others, as programs: called by the tests and by the demo.

The programs in verify/ (Python) and node/ have one shape: what they trust are their arguments,
they read one message a line, and print one JSON object for each: what they have verified, or why
the message is ``refused``. Binary messages are in Base64.
"""

import base64
import fcntl
import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.e2e import node_programs

ROOT = Path(__file__).parents[2]
_VERIFY = Path(__file__).parent / "verify"
_VENV = ROOT / "build" / "verify-venv"

Verdict = dict[str, Any]
"""What a program has verified of one message, or ``refused`` with its reason."""


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


def _python(program: str) -> list[str]:
    # -I: neither our packages nor our folder are in its sight.
    return [str(prepare()), "-I", str(_VERIFY / program)]


def _node(program: str) -> list[str]:
    return ["node", str(node_programs.prepare() / program)]


PROGRAMS: Mapping[str, Callable[[], list[str]]] = {
    "python-cwt": lambda: _python("verify_hcert.py"),
    "pycose": lambda: _python("verify_cose.py"),
    "jwcrypto": lambda: _python("verify_jws.py"),
    "rfc3161-client": lambda: _python("verify_timestamp.py"),
    "jose": lambda: _node("verify_jws.mjs"),
    "@auth0/cose": lambda: _node("verify_cose.mjs"),
    "kill-the-clipboard": lambda: _node("verify_card.mjs"),
}
"""The programs by the package that verifies in them; each says itself how it is used."""


@contextmanager
def running(package: str, *arguments: object) -> Iterator[Callable[[str], Verdict]]:
    """Yields a program that waits for messages: a function that has it verify one.

    Raises RejectedError if the program ends without a verdict.
    """
    command = [*PROGRAMS[package](), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        given, said = process.stdin, process.stdout

        def judge(line: str) -> Verdict:
            with suppress(BrokenPipeError):
                given.write(f"{line}\n")
                given.flush()
            if answer := said.readline():
                verdict: Verdict = json.loads(answer)
                return verdict
            errors.seek(0)
            raise RejectedError(f"{package} ended: {errors.read().strip()[-800:]}")

        try:
            yield judge
        finally:
            with suppress(BrokenPipeError):
                given.close()
            said.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def judge(package: str, lines: Sequence[str], *arguments: object) -> list[Verdict]:
    """Has a program verify messages; returns its verdicts. Raises RejectedError as ``running``."""
    with running(package, *arguments) as one:
        return [one(line) for line in lines]


def hcert(texts: Sequence[str], certificate: Path) -> list[Verdict]:
    """Has python-cwt verify HC1 texts; returns their claims. Raises RejectedError."""
    return _accepted(judge("python-cwt", texts, certificate))


def jws(tokens: Sequence[str], public_key: Path, algorithm: str) -> list[Verdict]:
    """Has jwcrypto verify compact JWS; returns headers and payloads. Raises RejectedError."""
    return _accepted(judge("jwcrypto", tokens, public_key, algorithm))


def _accepted(verdicts: list[Verdict]) -> list[Verdict]:
    for verdict in verdicts:
        if "refused" in verdict:
            raise RejectedError(verdict["refused"])
    return verdicts


def qr_codes(images: Sequence[Path]) -> list[str]:
    """Has zxing-cpp read the one QR code of each image. Raises RejectedError."""
    texts: list[str] = json.loads(_run([*_python("read_qr.py"), *map(str, images)]))
    return texts


def proof(proof_file: Path, message: Path, audit_key: Path) -> dict[str, Any]:
    """Has hashlib and cryptography verify a proof of the audit log; returns what it proves.

    ``message`` holds the HC1 text or JWS that the proof is of. Raises RejectedError.
    """
    files = [str(path) for path in (audit_key, proof_file, message)]
    proven: dict[str, Any] = json.loads(_run([*_python("verify_proof.py"), *files]))
    return proven


# --- OpenSSL --------------------------------------------------------------------------------------


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


def openssl_cms(document: bytes, made: bytes, roots: Path, *words: str) -> None:
    """Has OpenSSL verify a detached CMS signature as CAdES. Raises RejectedError."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "document").write_bytes(document)
        (Path(folder) / "signature").write_bytes(made)
        command = ["openssl", "cms", "-verify", "-cades", "-binary", "-inform", "DER"]
        command += ["-in", f"{folder}/signature", "-content", f"{folder}/document"]
        _run([*command, "-CAfile", str(roots), "-out", "/dev/null", *words])


def openssl_ts(document: bytes, answer: bytes, roots: Path, *words: str) -> None:
    """Has OpenSSL verify a time-stamp of a document. Raises RejectedError."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "document").write_bytes(document)
        (Path(folder) / "answer").write_bytes(answer)
        command = ["openssl", "ts", "-verify", "-in", f"{folder}/answer"]
        _run([*command, "-data", f"{folder}/document", "-CAfile", str(roots), *words])


def _der(raw: bytes) -> bytes:
    """r||s as DER (RFC 3279, section 2.2.3), for curves up to P-384: short lengths only."""
    numbers = b""
    for half in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
        value = int.from_bytes(half)
        content = value.to_bytes(value.bit_length() // 8 + 1)
        numbers += bytes([0x02, len(content)]) + content
    return bytes([0x30, len(numbers)]) + numbers


def _run(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RejectedError(f"{command[0]} says: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


def in_base64(*parts: bytes) -> str:
    """Returns a line for a program that reads binary messages."""
    return " ".join(base64.b64encode(part).decode() for part in parts)


if __name__ == "__main__":  # for the Makefile: the installation before the tests
    sys.stdout.write(f"{prepare()}\n")
