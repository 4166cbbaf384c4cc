"""The pinned public keys with which a worker checks what the module returns.

What is kept is bounded: a worker may sign with more keys than it has memory for.
"""

from collections import OrderedDict
from collections.abc import Sequence

from signer.hsm.frames import SignPart
from signer.hsm.mechanisms import Verifier

MAX_PINS = 32_768  # of which a worker knows what it has signed; each takes about 350 bytes
MAX_VERIFIERS = 2_048  # each takes about 3 KB; another one is loaded for the next check


class _Signed:
    """A pin's length of signatures in bytes, and how many were made in this worker's life."""

    __slots__ = ("count", "width")

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0


class Pins:
    """Checks signatures, one in ``check_every`` of a part, with its pinned public key."""

    def __init__(self) -> None:
        self._signed: OrderedDict[tuple[bytes, bytes], _Signed] = OrderedDict()
        self._verifiers: OrderedDict[tuple[bytes, bytes], Verifier] = OrderedDict()

    def width(self, part: SignPart) -> int:
        """Returns the length of a part's signatures in bytes.

        Raises ValueError if its pin does not fit its algorithm.
        """
        return self._of(part).width

    def check(self, part: SignPart, signatures: Sequence[bytes]) -> tuple[int, list[int]]:
        """Checks one signature in ``check_every``, and always the first of a key.

        Where one is wrong, checks the whole part. Returns how many were checked and
        the indexes of the wrong ones.
        """
        signed = self._of(part)
        sample = range(-signed.count % part.check_every, len(signatures), part.check_every)
        signed.count += len(signatures)
        right_length = all(len(signature) == signed.width for signature in signatures)
        if right_length and not sample:
            return 0, []
        correct, inputs = self._verifier(part).correct, part.inputs
        if right_length and all(correct(inputs[at], signatures[at]) for at in sample):
            return len(sample), []
        pairs = enumerate(zip(inputs, signatures, strict=True))
        return len(signatures), [at for at, (item, made) in pairs if not correct(item, made)]

    def begin_again(self, part: SignPart) -> None:
        """Has the next signature of a key checked: it may be another key's by now."""
        self._of(part).count = 0

    def _of(self, part: SignPart) -> _Signed:
        pin = (part.cka_id, part.spki)
        signed = self._signed.get(pin)
        if signed is not None:
            self._signed.move_to_end(pin)
            return signed
        signed = self._signed[pin] = _Signed(self._verifier(part).signature_length)
        if len(self._signed) > MAX_PINS:
            self._signed.popitem(last=False)
        return signed

    def _verifier(self, part: SignPart) -> Verifier:
        pin = (part.cka_id, part.spki)
        verifier = self._verifiers.get(pin)
        if verifier is not None:
            self._verifiers.move_to_end(pin)
            return verifier
        verifier = self._verifiers[pin] = Verifier(part.algorithm, part.spki)
        if len(self._verifiers) > MAX_VERIFIERS:
            self._verifiers.popitem(last=False)
        return verifier
