"""Runs the C loop (tests/load/loop.c), which signs on the token without an appliance."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from signer.algorithms import Algorithm
from signer.config.models import Config
from signer.errors import OperatorError
from signer.keys.registry import Registry
from signer.model import KeyName
from signer.tools.bench.stepping import Stepping

Mode = Literal["plain", "best"]

MECHANISMS = {  # the names of the loop, which does not support P-384
    Algorithm.ES256: "ecdsa",
    Algorithm.RS256: "rsa-pkcs",
    Algorithm.PS256: "rsa-pss",
    Algorithm.EDDSA: "eddsa",
}


def cka_ids(config: Config, names: Sequence[KeyName]) -> list[bytes]:
    """Returns the CKA_IDs of the keys' primary versions, from the registry."""
    with Registry.open(config.registry) as registry:
        index = registry.snapshot()
    versions = [index.primary(name, time.time()) for name in names]
    return [version.cka_id for version in versions if version is not None]


class RunningLoop:
    """A loop that has its keys and waits; without CPU between two measurements."""

    def __init__(self, process: Stepping) -> None:
        self._process = process

    def rate(self) -> float:
        """Measures once; returns signatures a second. Raises OperatorError."""
        self._process.begin()
        return float(json.loads(self._process.finish())["rate"])


class CLoop:
    """The compiled loop on the first token of ``config``."""

    def __init__(self, program: Path, config: Config) -> None:
        if not program.exists():
            raise OperatorError(f"{program} is missing: `make bench` compiles tests/load/loop.c")
        self._program = program.resolve()
        self._token = config.tokens[0]

    @contextmanager
    def running(
        self,
        mode: Mode,
        algorithm: Algorithm,
        ids: Sequence[bytes],
        *,
        seconds: float,
        threads: int = 2,
        check: Path | None = None,
    ) -> Iterator[RunningLoop]:
        """Starts the loop; each measurement takes ``seconds``.

        ``check`` is a file with a public key in PEM: the loop verifies every signature with
        it. Raises OperatorError with the loop's error text.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".ids") as file:
            file.write("".join(f"{cka_id.hex()}\n" for cka_id in ids))
            file.flush()
            command = [str(self._program), "--module", str(self._token.module)]
            command += ["--token", self._token.label, "--pin-file", str(self._token.pin_file)]
            command += ["--ids", file.name, "--mode", mode, "--mechanism", MECHANISMS[algorithm]]
            command += ["--seconds", str(seconds), "--threads", str(threads), "--step"]
            if check is not None:
                command += ["--check", str(check)]
            environment = {**os.environ, **self._token.environment}
            with Stepping("the C loop", command, environment, seconds) as process:
                yield RunningLoop(process)
