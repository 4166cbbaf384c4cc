"""Payloads that are signed at the same time, by threads or by tasks."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from signer.client import SignerClientError

Together = Callable[..., list[Any]]
"""Signs payloads at the same time; what each caller got, in their order."""


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def in_threads(
    sign: Callable[[bytes, float], bytes], payloads: Sequence[bytes], timeouts: Sequence[float]
) -> list[Any]:
    """What each thread got from ``sign(payload, timeout)``: a signature or an error."""
    results: list[Any] = [None] * len(payloads)

    def call(index: int) -> None:
        try:
            results[index] = sign(payloads[index], timeouts[index] if timeouts else 20)
        except SignerClientError as error:
            results[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(payloads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    return results


async def in_tasks(
    sign: Callable[[bytes, float], Awaitable[bytes]],
    payloads: Sequence[bytes],
    timeouts: Sequence[float],
) -> list[Any]:
    """What each task got: a signature or an error."""
    calls = [sign(each, timeouts[index] if timeouts else 20) for index, each in enumerate(payloads)]
    return list(await asyncio.gather(*calls, return_exceptions=True))
