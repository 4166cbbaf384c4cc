"""The plan of a rotation, whose hash officers sign: one step a key.

It needs no package of the server: an officer's own program works the plan out and compares.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.model import KeyName


class Step(NamedTuple):
    """One key of a plan: the numbers of its primary version and of the next."""

    key: KeyName
    old: int
    new: int
    algorithm: Algorithm
    bits: int


def plan_text(plan: Sequence[Step]) -> bytes:
    """Returns a plan as it is stored and hashed: JSON, one step a line."""
    lines = [json.dumps([str(s.key), s.old, s.new, str(s.algorithm), s.bits]) for s in plan]
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def parse_plan(content: bytes) -> list[Step]:
    """Reads what ``plan_text`` returned; raises ValueError."""
    try:
        return [
            Step(KeyName.parse(key), int(old), int(new), Algorithm(algorithm), int(bits))
            for key, old, new, algorithm, bits in json.loads(content)
        ]
    except (TypeError, AttributeError, OverflowError, RecursionError):
        raise ValueError("not a plan of a rotation") from None
