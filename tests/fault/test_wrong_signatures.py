"""A module that lies: flipped and foreign signatures, none of which a worker gives away."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.hsm.frames import (
    FrameKind,
    ResultPart,
    SignFrame,
    SignPart,
    Verdict,
    pack_sign,
    unpack_result,
)
from signer.hsm.front.process import WorkerProcess
from signer.model import KeyVersion
from tests.fault.shim import Action, Shim
from tests.integration.hsm_token import SoftToken, all_correct, inputs_for

KINDS = {
    "ES256": (Algorithm.ES256, 0),
    "ES384": (Algorithm.ES384, 0),
    "EdDSA": (Algorithm.EDDSA, 0),
    "RS256": (Algorithm.RS256, 2048),
    "PS256": (Algorithm.PS256, 2048),
}
FEW = 24


class Lying:
    """A worker process of its own, on a token behind the shim; two keys of each kind."""

    def __init__(self, token: SoftToken, shim: Shim) -> None:
        self.shim = shim
        self.keys = dict(zip(KINDS, token.make(*KINDS.values()), strict=True))
        self.others = dict(zip(KINDS, token.make(*KINDS.values()), strict=True))
        self.process = WorkerProcess.start(token.spec())
        while self._receive()[0] is not FrameKind.READY:
            pass

    def _receive(self) -> tuple[FrameKind, memoryview]:
        return self.process.channel.receive()

    def sign(self, key: KeyVersion, inputs: Sequence[bytes], check_every: int = 1) -> ResultPart:
        part = SignPart(key.algorithm, check_every, key.cka_id, key.spki, inputs)
        self.process.channel.send(FrameKind.SIGN, *pack_sign(SignFrame(1, [part])))
        kind, body = self._receive()
        assert kind is FrameKind.RESULT, bytes(body)
        [result] = unpack_result(body).parts
        return result


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory, shim_module: Path) -> Iterator[Lying]:
    shim = Shim(tmp_path_factory.mktemp("rules") / "shim")
    token = SoftToken(tmp_path_factory.mktemp("hsm"))
    environment = {**token.settings.environment, **shim.environment}
    token.settings = token.settings.model_copy(
        update={"module": shim_module, "environment": environment}
    )
    made = Lying(token, shim)
    yield made
    shim.clear()
    made.process.end()


@pytest.fixture
def worker(lying: Lying) -> Iterator[Lying]:
    yield lying
    lying.shim.clear()


def nothing_leaves(result: ResultPart, count: int) -> bool:
    """Whether all items are named as wrong, and none has a byte of a signature."""
    blank = bytes(len(result.signatures))
    return (
        result.verdict is Verdict.SIGNED
        and list(result.wrong) == list(range(count))
        and result.signatures == blank
    )


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("ES256", 512),
        ("EdDSA", 512),
        ("RS256", 256),
        pytest.param("ES384", 768, marks=pytest.mark.torture),
        pytest.param("RS256", 2048, marks=pytest.mark.torture),
        pytest.param("PS256", 2048, marks=pytest.mark.torture),
    ],
)
def test_no_signature_with_a_flipped_bit_leaves(worker: Lying, name: str, times: int) -> None:
    """Each item of the chunk has another bit flipped, from the first bit on."""
    key = worker.keys[name]
    flips = worker.shim.on("C_Sign", action=Action.FLIP)
    assert nothing_leaves(worker.sign(key, inputs_for(key, times)), times)
    assert flips.acted == times


@pytest.mark.parametrize("times", [FEW])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "rule",
    [
        {"action": Action.OTHER_DATA},
        {"action": Action.FILL, "value": 0},
        {"action": Action.FILL, "value": 0xFF},
        {"action": Action.RESIZE, "value": 0},
        {"action": Action.RESIZE, "value": 63},
        {"action": Action.RESIZE, "value": 65},
        {"action": Action.RESIZE, "value": 513},
    ],
    ids=lambda rule: "-".join(map(str, rule.values())),
)
def test_no_foreign_signature_leaves(
    worker: Lying, name: str, rule: dict[str, Any], times: int
) -> None:
    key = worker.keys[name]
    worker.shim.on("C_Sign", **rule)
    assert nothing_leaves(worker.sign(key, inputs_for(key, times)), times)


@pytest.mark.parametrize("times", [FEW])
@pytest.mark.parametrize("name", KINDS)
def test_no_signature_of_another_key_leaves(worker: Lying, name: str, times: int) -> None:
    key = worker.keys[name]
    rule = worker.shim.on("C_SignInit", action=Action.WRONG_KEY, other=worker.others[name].cka_id)
    assert nothing_leaves(worker.sign(key, inputs_for(key, times)), times)
    assert rule.acted == times
    worker.shim.clear()
    inputs = inputs_for(key, times)
    result = worker.sign(key, inputs)
    assert all_correct(key, inputs, result.split()), "the worker goes on"


def test_the_right_ones_of_a_chunk_leave_and_no_other(worker: Lying) -> None:
    key = worker.keys["ES256"]
    inputs = inputs_for(key, 64)
    worker.shim.on("C_Sign", skip=10, times=3, action=Action.FLIP)
    result = worker.sign(key, inputs)
    assert list(result.wrong) == [10, 11, 12]
    signatures = result.split()
    assert signatures[10:13] == [bytes(64)] * 3
    good = [*range(10), *range(13, 64)]
    assert all_correct(key, [inputs[i] for i in good], [signatures[i] for i in good])
