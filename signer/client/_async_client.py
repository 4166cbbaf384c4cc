"""``AsyncSignerClient``: the client for programs on asyncio."""

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Self

import grpc

from signer.client import _cutting as cutting
from signer.client import _exchanges as exchanges
from signer.client import _pipeline as pipeline
from signer.client._calls import Awaiting, awaited, iterated
from signer.client._channels import FilePath, secure_channel_awaited
from signer.client._errors import closed
from signer.client._exchanges import DEFAULT_TIMEOUT
from signer.client._gathering import CALLS_OUT
from signer.client._gathering_tasks import TaskGathering
from signer.client._operations import AsyncOperations
from signer.client._stream_tasks import AsyncSignerStream
from signer.client._streams import stream_method
from signer.client._values import ItemResult
from signer.model import Format


class AsyncSignerClient(Awaiting):
    """``SignerClient`` for asyncio: the same calls as coroutines, and ``async for`` for lists.

        async with AsyncSignerClient.from_files(...) as client:
            signature = await client.sign_one("facilities/01-001/keys/records", "JWS", payload)

    Made and used on one event loop. A call of a task that is cancelled is cancelled, except
    that items of ``sign_one`` are taken out of their batch as far as it was not sent.
    """

    def __init__(self, channel: grpc.aio.Channel, *, calls_out: int = CALLS_OUT) -> None:
        """``calls_out``: calls of ``sign_one`` in flight for each key and format."""
        super().__init__(channel)
        self._channel = channel
        self.operations = AsyncOperations(channel)
        self._stream_method = stream_method(channel)
        self._calls_out = calls_out
        self._gatherings: dict[tuple[str, str], TaskGathering] = {}
        self._closed = False

    @classmethod
    def from_files(
        cls,
        address: str,
        *,
        ca: FilePath,
        certificate: FilePath,
        key: FilePath,
        server_name: str | None = None,
    ) -> Self:
        """Connects to one appliance or to several; arguments as for ``secure_channel``.

        To be called on the event loop that is to use it.
        """
        return cls(
            secure_channel_awaited(
                address, ca=ca, certificate=certificate, key=key, server_name=server_name
            )
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; what is not answered yet fails with the reason ``CLOSED``."""
        self._closed = True
        for gathering in self._gatherings.values():
            gathering.close(closed(ValueError("the client was closed")))
        await self._channel.close()

    get_key = awaited(exchanges.get_key)
    list_keys = iterated(exchanges.list_keys)
    get_key_version = awaited(exchanges.get_key_version)
    list_key_versions = iterated(exchanges.list_key_versions)
    list_wrapping_keys = awaited(exchanges.list_wrapping_keys)
    get_checkpoint = awaited(exchanges.get_checkpoint)
    list_records = iterated(exchanges.list_records)
    inclusion_proof = awaited(exchanges.inclusion_proof)
    consistency_proof = awaited(exchanges.consistency_proof)
    reload = awaited(exchanges.reload)
    status = awaited(exchanges.status)
    health = awaited(exchanges.health)

    async def sign_one(
        self,
        key: str,
        message_format: Format | str,
        payload: bytes,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> bytes:
        """Signs one payload; as ``SignerClient.sign_one``, awaited by any number of tasks.

        A task that is cancelled takes its item out of the batch that was not sent; in one
        that was sent it is signed, and its signature is dropped.
        """
        gathering = self._gatherings.get((key, message_format))
        if gathering is None or self._closed:
            gathering = self._gathering(key, Format(message_format))
        return await gathering.sign(cutting.octets(payload), timeout)

    def _gathering(self, key: str, message_format: Format) -> TaskGathering:
        if self._closed:
            raise closed(ValueError("the client was closed"))

        async def limit() -> int:
            return (await self.get_key(pipeline.key_of(key))).most_items

        made = TaskGathering(self._call, limit, key, message_format, self._calls_out)
        return self._gatherings.setdefault((key, message_format), made)

    def stream(self, key: str, message_format: Format | str) -> AsyncSignerStream:
        """Returns a stream for one key and format; as ``SignerClient.stream``."""
        return AsyncSignerStream(self._stream_method, key, Format(message_format))

    async def sign(
        self,
        key: str,
        message_format: Format | str,
        payloads: Iterable[bytes],
        *,
        batch_items: int | None = None,
        in_flight: int = 4,
        timeout: float = DEFAULT_TIMEOUT,
        request_id: uuid.UUID | None = None,
        revocation: bool = False,
        cosignatures: Iterable[bytes] | None = None,
    ) -> AsyncIterator[ItemResult]:
        """Signs any number of payloads; yields one result each, in their order.

        As ``SignerClient.sign``, for ``async for``; errors of the arguments are raised by its
        first step.
        """
        wanted = Format(message_format)
        cutting.several(payloads)
        cutting.check(batch_items, in_flight)
        if batch_items is None:
            found = await self.get_key(pipeline.key_of(key), timeout=timeout)
            batch_items, in_flight = cutting.plan(found, in_flight)
        job = pipeline.Job(key, wanted, request_id or uuid.uuid4(), timeout, revocation)
        batches = cutting.cut(payloads, wanted, batch_items, cosignatures)
        async for result in pipeline.run_awaited(self._call, batches, job, in_flight):
            yield result

    async def sign_batch(
        self,
        key: str,
        message_format: Format | str,
        payloads: Sequence[bytes],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        request_id: uuid.UUID | None = None,
        revocation: bool = False,
        cosignatures: Sequence[bytes] = (),
    ) -> list[ItemResult]:
        """Signs one batch in exactly one call, without retries."""
        call_id = str(request_id or uuid.uuid4())
        request = pipeline.request_of(
            key,
            Format(message_format),
            payloads,
            call_id,
            revocation=revocation,
            cosignatures=cosignatures,
        )
        response = await self._call(request, timeout)
        return pipeline.results_of(pipeline.read_answer(response, len(payloads)))
