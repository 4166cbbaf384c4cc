"""SigningService: reads a batch, signs it with the engine, answers; alone or in a stream."""

import re

from google.rpc import status_pb2

from signer.api import wire
from signer.api.guard import Caller, Context
from signer.api.places import held_by
from signer.api.streams import Streams
from signer.errors import Failure, invalid
from signer.event_loop import Turns
from signer.model import Format, parse_key_or_version
from signer.signing.engine import Engine
from signer.signing.request import BatchRequest
from signer.v1 import signing_pb2, signing_pb2_grpc

MAX_NAME_BYTES = 256
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
FAILURES = 16
"""Failures that are put into an answer between two looks at the clock."""


class SigningService(signing_pb2_grpc.SigningServiceServicer):
    """Signs batches."""

    def __init__(self, engine: Engine, turns: Turns, streams: Streams) -> None:
        self._engine, self._turns, self.streams = engine, turns, streams

    async def SignBatch(
        self, request: signing_pb2.SignBatchRequest, caller: Caller
    ) -> signing_pb2.SignBatchResponse:
        """Answers with one signature or one failure for each payload; raises CallError."""
        batch = _read(request, caller)
        del request  # the batch has its payloads
        items = len(batch.payloads) + len(batch.cosignatures)
        if caller.place is not None:
            caller.place.resize(held_by(caller.place.message, items))
        request_id = batch.request_id or caller.call_id
        caller.notes |= {
            "request_id": request_id,
            "key": str(batch.key),
            "format": str(batch.format),
            "items": len(batch.payloads),
        }
        result = await self._engine.sign_batch(batch)
        version = result.version.name
        caller.notes |= {
            "key_version": version,
            "rule": result.rule,
            "failed": len(result.failures),
        }
        response = signing_pb2.SignBatchResponse(
            key_version=version,
            signatures=result.outputs,
            request_id=request_id,
            audit_record=result.audit_record,
            revocation=wire.revocation(result.handles) if batch.revocation else None,
        )
        statuses: dict[Failure, status_pb2.Status] = {}  # most items fail for the same reason
        for count, (index, failure) in enumerate(result.failures.items(), 1):
            if not count % FAILURES:
                await self._turns.next(caller.principal)
            status = statuses.get(failure)
            if status is None:
                status = statuses[failure] = wire.item_status(failure)
            response.failures[index].CopyFrom(status)
        return response

    async def SignStream(self, context: Context, caller: Caller) -> None:  # type: ignore[override]
        """Answers the requests of a stream, each as SignBatch does; raises CallError."""
        await self.streams.serve(context, caller, self.SignBatch)

    async def settle(self, seconds: float) -> None:
        """Returns when calls that were cut off have closed their intents, or after a while."""
        await self._engine.settle(seconds)

    def drain(self) -> None:
        """Ends all streams, after the requests that they have read are answered."""
        self.streams.drain()


_FORMATS = ", ".join(signing_pb2.Format.Name(number) for number in wire.FORMATS)


def _read(request: signing_pb2.SignBatchRequest, caller: Caller) -> BatchRequest:
    if len(request.key.encode()) > MAX_NAME_BYTES:
        raise invalid("key", f"is longer than {MAX_NAME_BYTES} bytes")
    try:
        key, version = parse_key_or_version(request.key)
    except ValueError as error:
        raise invalid("key", str(error)) from None
    requested = wire.FORMATS.get(request.format)
    if requested is None:
        wrong = f"{request.format} is not a format" if request.format else "is not stated"
        raise invalid("format", f"{wrong}: give one of {_FORMATS}")
    if request.revocation and requested is not Format.HCERT:
        raise invalid("revocation", f"is for HCERT only: a {requested} has no handles")
    return BatchRequest(
        principal=caller.principal,
        key=key,
        version=version,
        format=requested,
        payloads=list(request.payloads),
        deadline=caller.deadline,
        request_id=_request_id(request.request_id),
        call_id=caller.call_id,
        revocation=request.revocation,
        cosignatures=list(request.cosignatures),
    )


def _request_id(text: str) -> str:
    if not text:
        return ""
    if _UUID(text):
        return text
    raise invalid("request_id", "must be a UUID in its canonical form of 36 lower-case characters")
