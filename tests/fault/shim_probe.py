"""A program of PKCS#11 with a session on a token, which does what its standard input says.

``python shim_probe.py MODULE LABEL PIN_FILE``: a line is a JSON list of a
method of ``Session`` and its arguments, the answer is a line of JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass

from signer.hsm.latch import start_lock
from signer.hsm.spec import TokenSpec


class Probe:
    """The program; ``probe.found(...)`` and so on call the methods of its session."""

    def __init__(self, spec: TokenSpec) -> None:
        # SoftHSM fails where one process opens a token while another one logs in.
        with start_lock(Path(spec.state), spec.label):
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.fault.shim_probe"),
                    *(spec.module, spec.label, spec.pin_file),
                ],
                cwd=Path(__file__).parents[2],
                env={**os.environ, **spec.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self.started()

    def __getattr__(self, function: str) -> Any:
        def call(*arguments: object) -> Any:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=30)
        assert kind is not None or self._process.returncode == 0


class Session:
    """What the program can do."""

    def __init__(self, module: str, label: str, pin_file: str) -> None:
        token = pkcs11.lib(module).get_token(token_label=label)
        self._session = token.open(rw=True, user_pin=Path(pin_file).read_text().strip())

    def started(self) -> bool:
        return True

    def _objects(self, cka_id: str | None, **template: Any) -> list[Any]:
        wanted = {Attribute[name]: value for name, value in template.items()}
        if cka_id is not None:
            wanted[Attribute.ID] = cka_id.encode()
        return list(self._session.get_objects(wanted))

    def found(self, cka_id: str | None, kind: str | None = None) -> list[int]:
        """Handles, as the shim finds them."""
        template = {} if kind is None else {"CLASS": ObjectClass[kind]}
        return sorted(each.handle for each in self._objects(cka_id, **template))

    def private(self, cka_id: str | None) -> list[int]:
        """Handles of private keys, by an attribute for which the shim asks the module."""
        return sorted(
            each.handle
            for each in self._objects(cka_id, CLASS=ObjectClass.PRIVATE_KEY, PRIVATE=True)
        )

    def create(self, cka_id: str) -> None:
        parameters = {Attribute.EC_PARAMS: bytes.fromhex("06082a8648ce3d030107")}
        domain = self._session.create_domain_parameters(KeyType.EC, parameters, local=True)
        domain.generate_keypair(store=True, id=cka_id.encode(), label=cka_id)

    def copy(self, cka_id: str) -> None:
        [key, *_] = self._objects(cka_id, CLASS=ObjectClass.PRIVATE_KEY)
        key.copy({Attribute.TOKEN: False})

    def destroy(self, cka_id: str) -> None:
        for each in self._objects(cka_id):
            each.destroy()

    def rename(self, cka_id: str, other: str) -> None:
        for each in self._objects(cka_id):
            each[Attribute.ID] = other.encode()


def main() -> None:
    session = Session(*sys.argv[1:])
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        print(json.dumps(getattr(session, function)(*arguments)), flush=True)
    os._exit(0)  # the module's own clean-up is not under test


if __name__ == "__main__":
    main()
