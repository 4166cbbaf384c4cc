"""Looks at a token from inside a process of its own, where PKCS#11 may be loaded.

``python hsm_probe.py COMMAND``, a JSON object on stdin, one on stdout.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from signer.algorithms import Algorithm
from signer.hsm.frames import SignPart
from signer.hsm.heartbeat import Heartbeat, shared_counter
from signer.hsm.mechanisms import Verifier
from signer.hsm.spec import TokenSpec
from signer.model import KeyVersion


def ask(command: str, spec: TokenSpec, **arguments: Any) -> dict[str, Any]:
    """Runs a command of this program on a token."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.hsm_probe", command],
        cwd=Path(__file__).parents[2],
        input=json.dumps({"spec": asdict(spec), **arguments}),
        env={**os.environ, **spec.environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


NAMES = (
    "TOKEN",
    "PRIVATE",
    "SENSITIVE",
    "ALWAYS_SENSITIVE",
    "EXTRACTABLE",
    "NEVER_EXTRACTABLE",
    "LOCAL",
    "SIGN",
    "SIGN_RECOVER",
    "DECRYPT",
    "UNWRAP",
    "DERIVE",
)


def heartbeat() -> Heartbeat:
    with shared_counter() as counter:
        return Heartbeat(counter)


def key_arguments(keys: Sequence[KeyVersion]) -> list[list[str]]:
    return [[key.algorithm, key.cka_id.hex(), key.spki.hex()] for key in keys]


def attributes(spec: TokenSpec, keys: list[list[str]]) -> dict[str, Any]:
    """What the token says of private keys, and whether their values can be read."""
    import pkcs11
    from pkcs11.exceptions import PKCS11Error

    from signer.hsm.worker.token import open_token

    token = open_token(spec, heartbeat())
    answer = {}
    for _, cka_id, _ in keys:
        [key] = token.session.get_objects(
            {
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY,
                pkcs11.Attribute.ID: bytes.fromhex(cka_id),
            }
        )
        secret = (
            pkcs11.Attribute.PRIVATE_EXPONENT
            if key.key_type is pkcs11.KeyType.RSA
            else pkcs11.Attribute.VALUE
        )
        try:
            readable = bool(key[secret])
        except PKCS11Error:
            readable = False
        answer[cka_id] = {
            **{name: bool(key[pkcs11.Attribute[name]]) for name in NAMES},
            "readable": readable,
        }
    return answer


def objects(spec: TokenSpec, cka_id: str) -> dict[str, Any]:
    """How many objects of each class have a CKA_ID."""
    import pkcs11

    token = pkcs11.lib(spec.module).get_token(token_label=spec.label)
    with token.open(user_pin=Path(spec.pin_file).read_text().strip()) as session:
        found = session.get_objects({pkcs11.Attribute.ID: bytes.fromhex(cka_id)})
        names = [pkcs11.ObjectClass(each[pkcs11.Attribute.CLASS]).name for each in found]
    return {name: names.count(name) for name in names}


def copies(spec: TokenSpec, keys: list[list[str]], most: int, rounds: int) -> dict[str, Any]:
    """Signs in turn with more keys than copies and handles are kept; counts session objects."""
    import pkcs11

    from signer.hsm.worker import lookup
    from signer.hsm.worker import token as token_module
    from signer.hsm.worker.__main__ import ChunkSigner

    token_module.MAX_COPIES = lookup.MAX_HANDLES = most
    token = token_module.open_token(spec, heartbeat())
    signer = ChunkSigner(token)
    correct, counts = 0, []
    template = {
        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY,
        pkcs11.Attribute.TOKEN: False,
    }

    def count() -> int:
        return sum(1 for _ in token.session.get_objects(template))

    for number in range(rounds):
        for algorithm, cka_id, spki in keys:
            pin, inputs = bytes.fromhex(spki), [bytes([number]) * 32] * 3
            part = SignPart(Algorithm(algorithm), 1000, bytes.fromhex(cka_id), pin, inputs)
            result = signer.sign_part(part)
            verifier = Verifier(Algorithm(algorithm), pin)
            correct += sum(map(verifier.correct, inputs, result.split()))
            counts.append(count())
    ids = [bytes.fromhex(cka_id) for _, cka_id, _ in keys]
    for _ in range(2):
        token.drop(ids)
    return {"correct": correct, "most": max(counts), "left": count()}


def copies_after_loss(spec: TokenSpec, keys: list[list[str]]) -> dict[str, Any]:
    """Destroys the first key when its handle is known, then has all of them sign."""
    import pkcs11

    from signer.hsm.worker.__main__ import ChunkSigner
    from signer.hsm.worker.token import open_token

    token = open_token(spec, heartbeat())
    token.objects.destroy(token.keys.find(bytes.fromhex(keys[0][1])))
    signer, verdicts = ChunkSigner(token), []
    for algorithm, cka_id, spki in keys:
        pin, inputs = bytes.fromhex(spki), [bytes(32)]
        part = SignPart(Algorithm(algorithm), 1, bytes.fromhex(cka_id), pin, inputs)
        verdicts.append(signer.sign_part(part).verdict.name)
    template = {
        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY,
        pkcs11.Attribute.TOKEN: False,
    }
    return {"verdicts": verdicts, "copies": sum(1 for _ in token.session.get_objects(template))}


def calls(spec: TokenSpec, cka_id: str) -> dict[str, int]:
    """How many calls of our own a token takes to open, and a key to be found in several ways."""
    from signer.hsm.worker.token import open_token
    from signer.hsm.worker.unwrapping import NotOneKey

    beats = heartbeat()
    token = open_token(spec, beats)
    counted = {"open": beats.count}

    def count(name: str, wanted: bytes) -> None:
        before = beats.count
        with suppress(NotOneKey):
            token.private_key(wanted)
        counted[name] = beats.count - before

    known = bytes.fromhex(cka_id)
    count("first", known)
    count("second", known)
    count("absent", b"absent")
    token.drop([known])
    count("after a stop", known)
    token.forget([known])
    count("after a change", known)
    return counted


def destroy(spec: TokenSpec, cka_id: str) -> dict[str, Any]:
    """Destroys a key pair as another program might; nobody hears of it."""
    import pkcs11

    token = pkcs11.lib(spec.module).get_token(token_label=spec.label)
    with token.open(rw=True, user_pin=Path(spec.pin_file).read_text().strip()) as session:
        for each in list(session.get_objects({pkcs11.Attribute.ID: bytes.fromhex(cka_id)})):
            each.destroy()
    return {}


def duplicate(spec: TokenSpec, cka_id: str, label: str) -> dict[str, Any]:
    """Creates a key pair as another program might, without looking for what is there."""
    import pkcs11

    token = pkcs11.lib(spec.module).get_token(token_label=spec.label)
    with token.open(rw=True, user_pin=Path(spec.pin_file).read_text().strip()) as session:
        session.generate_keypair(
            pkcs11.KeyType.RSA, 1024, id=bytes.fromhex(cka_id), label=label, store=True
        )
    return {}


def plant(spec: TokenSpec, cka_id: str, label: str) -> dict[str, Any]:
    """Puts an AES key that somebody knows on the token, as a wrapping key is."""
    import pkcs11

    token = pkcs11.lib(spec.module).get_token(token_label=spec.label)
    values: dict[Any, Any] = {
        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
        pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.AES,
        pkcs11.Attribute.VALUE: bytes(32),
        pkcs11.Attribute.ID: bytes.fromhex(cka_id),
        pkcs11.Attribute.LABEL: label,
    }
    flags = {"TOKEN", "PRIVATE", "SENSITIVE", "UNWRAP", "WRAP"}
    for name in (*flags, "EXTRACTABLE", "ENCRYPT", "DECRYPT", "SIGN", "VERIFY"):
        values[pkcs11.Attribute[name]] = name in flags
    with token.open(rw=True, user_pin=Path(spec.pin_file).read_text().strip()) as session:
        session.create_object(values)
    return {}


def flags(spec: TokenSpec) -> dict[str, Any]:
    """What the token says of wrong PINs, without a login."""
    import pkcs11

    token = pkcs11.lib(spec.module).get_token(token_label=spec.label)
    return {
        "count_low": bool(token.flags & pkcs11.TokenFlag.USER_PIN_COUNT_LOW),
        "locked": bool(token.flags & pkcs11.TokenFlag.USER_PIN_LOCKED),
    }


COMMANDS = {
    each.__name__: each
    for each in (
        *(attributes, calls, copies, copies_after_loss, destroy, duplicate, flags, objects, plant),
    )
}


def main() -> None:
    order = json.load(sys.stdin)
    spec = TokenSpec(**order.pop("spec"))
    json.dump(COMMANDS[sys.argv[1]](spec, **order), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the module's own clean-up is not under test


if __name__ == "__main__":
    main()
