"""The worker's side of administrative operations: what an ADMIN frame may order.

An order is a JSON object with its ``operation``; bytes are hexadecimal. The
answer has ``error`` where the token could not do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from signer.hsm.frames import FrameError
from signer.hsm.spec import TokenFailure
from signer.hsm.worker.token import Token
from signer.model import Algorithm

KEYS_AT_ONCE = 2000
"""Keys of one answer to ``inventory``: 15,000 of them with long labels would burst a frame."""


def carry_out(token: Token, order: Mapping[str, Any]) -> dict[str, Any]:
    """Carries out one order.

    Raises TokenFailure where the session is in doubt afterwards, FrameError
    where the order is none of ours.
    """
    operation = _OPERATIONS.get(order.get("operation", ""))
    if operation is None:
        raise FrameError("an order of an unknown operation")
    try:
        return operation(token, order)
    except TokenFailure as failure:
        if failure.leave:
            raise
        return {"error": str(failure)}


def _generate(token: Token, order: Mapping[str, Any]) -> dict[str, Any]:
    algorithm, cka_id = Algorithm(order["algorithm"]), bytes.fromhex(order["cka_id"])
    return {"spki": token.generate(algorithm, order["bits"], cka_id, order["label"]).hex()}


def _describe(token: Token, _: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": token.describe()}


def _inventory(token: Token, order: Mapping[str, Any]) -> dict[str, Any]:
    """One part of the keys, from the number ``first`` on; the first part looks for new ones."""
    first: int = order["first"]
    if first == 0:
        token.refresh()
    keys = token.keys.listed()
    part = keys[first : first + KEYS_AT_ONCE]
    return {"keys": [[key.cka_id.hex(), key.label] for key in part], "count": len(keys)}


def _attributes(token: Token, order: Mapping[str, Any]) -> dict[str, Any]:
    return {"attributes": token.attributes(bytes.fromhex(order["cka_id"]))}


def _destroy(token: Token, order: Mapping[str, Any]) -> dict[str, Any]:
    token.destroy(bytes.fromhex(order["cka_id"]), order["label"])
    return {}


_OPERATIONS: Mapping[str, Callable[[Token, Mapping[str, Any]], dict[str, Any]]] = {
    "generate": _generate,
    "describe": _describe,
    "inventory": _inventory,
    "attributes": _attributes,
    "destroy": _destroy,
}
