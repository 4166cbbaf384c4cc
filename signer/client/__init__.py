"""The Python client of the appliance.

    with SignerClient.from_files("signer.example:7443", ca="ca.pem",
                                 certificate="me.pem", key="me.key") as client:
        for item in client.sign("facilities/01-001/keys/records", "JWS", payloads):
            print(item.signature.decode() if item.ok else item.error)

Two appliances take calls in turn while they serve, and either may be restarted:

    SignerClient.from_files("10.0.0.1:7443,10.0.0.2:7443", server_name="signer.example", ...)

The public names are those of this module; its submodules are private.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

import grpc

from signer.client import _cutting as cutting
from signer.client import _exchanges as exchanges
from signer.client import _pipeline as pipeline
from signer.client._async_client import AsyncSignerClient
from signer.client._calls import Blocking, asked, paged
from signer.client._channels import CHANNEL_OPTIONS, FilePath, secure_channel
from signer.client._errors import (
    DeadlineError,
    DeniedError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    ItemError,
    NotFoundError,
    PreconditionError,
    SignerClientError,
    UnauthenticatedError,
    UnavailableError,
    closed,
)
from signer.client._exchanges import DEFAULT_TIMEOUT
from signer.client._gathering import CALLS_OUT
from signer.client._gathering_threads import ThreadGathering
from signer.client._operations import OVER, AsyncOperations, Operations, sign_operation
from signer.client._stream_tasks import AsyncSignerStream
from signer.client._stream_threads import SignerStream
from signer.client._streams import stream_method
from signer.client._values import (
    ItemResult,
    Key,
    KeyVersion,
    LogRecord,
    Officer,
    Officers,
    OfficerSignature,
    Operation,
    Prepared,
    Quota,
    Reloaded,
    Status,
    Suspension,
    Usage,
    Worker,
    Wrapping,
    WrappingKey,
)
from signer.model import Format

__all__ = [
    "CHANNEL_OPTIONS",
    "OVER",
    "AsyncOperations",
    "AsyncSignerClient",
    "AsyncSignerStream",
    "DeadlineError",
    "DeniedError",
    "ExhaustedError",
    "Format",
    "InternalError",
    "InvalidRequestError",
    "ItemError",
    "ItemResult",
    "Key",
    "KeyVersion",
    "LogRecord",
    "NotFoundError",
    "Officer",
    "OfficerSignature",
    "Officers",
    "Operation",
    "Operations",
    "PreconditionError",
    "Prepared",
    "Quota",
    "Reloaded",
    "SignerClient",
    "SignerClientError",
    "SignerStream",
    "Status",
    "Suspension",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
    "Worker",
    "Wrapping",
    "WrappingKey",
    "secure_channel",
    "sign_operation",
]


class SignerClient(Blocking):
    """A connection to one appliance, or to several; safe to share between threads.

    Methods raise ``SignerClientError`` (a subclass by gRPC code) when a call
    fails as a whole. ``timeout`` is in seconds everywhere and bounds the call
    with all its retries. ``operations`` has the calls of security officers.

    A connection to several is for signing and for what the registry contains. Each
    appliance has its own audit log, status and answered request ids: operators and
    auditors connect to one at a time.
    """

    def __init__(self, channel: grpc.Channel, *, calls_out: int = CALLS_OUT) -> None:
        """``calls_out``: calls of ``sign_one`` in flight for each key and format."""
        super().__init__(channel)
        self._channel = channel
        self.operations = Operations(channel)
        self._stream_method = stream_method(channel)
        self._calls_out = calls_out
        self._gatherings: dict[tuple[str, str], ThreadGathering] = {}
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
        """Connects to one appliance or to several; arguments as for ``secure_channel``."""
        return cls(
            secure_channel(
                address, ca=ca, certificate=certificate, key=key, server_name=server_name
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and cancels the calls that are not answered yet."""
        self._closed = True
        for gathering in list(self._gatherings.values()):
            gathering.close(closed(ValueError("the client was closed")))
        self._channel.close()

    get_key = asked(exchanges.get_key)
    list_keys = paged(exchanges.list_keys)
    get_key_version = asked(exchanges.get_key_version)
    list_key_versions = paged(exchanges.list_key_versions)
    list_wrapping_keys = asked(exchanges.list_wrapping_keys)
    get_checkpoint = asked(exchanges.get_checkpoint)
    list_records = paged(exchanges.list_records)
    inclusion_proof = asked(exchanges.inclusion_proof)
    consistency_proof = asked(exchanges.consistency_proof)
    reload = asked(exchanges.reload)
    status = asked(exchanges.status)
    health = asked(exchanges.health)

    def sign_one(
        self,
        key: str,
        message_format: Format | str,
        payload: bytes,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> bytes:
        """Signs one payload and returns its signature, the finished output of the format.

        For programs that sign each record when it is made, with any number of threads: items
        of one key and format that come while calls are in flight go together in the next
        one. The first goes at once, and nothing waits while the client is idle.

        ``timeout`` is in seconds, for this item with all attempts. Calls refused for load or
        quota, lost connections and items that an HSM dropped are repeated within it, no
        sooner than the appliance says, and without signing twice. Raises ItemError if the
        payload is refused, DeadlineError when the time is over, another SignerClientError
        if the call fails for a reason that holds for all its items; ValueError for an
        unknown format.
        """
        gathering = self._gatherings.get((key, message_format))
        if gathering is None:
            gathering = self._gathering(key, Format(message_format))
        return gathering.sign(cutting.octets(payload), timeout)

    def _gathering(self, key: str, message_format: Format) -> ThreadGathering:
        if self._closed:
            raise closed(ValueError("the client was closed"))

        def limit(known: Callable[[int], None]) -> None:
            request = exchanges.get_key(pipeline.key_of(key))
            self._begin_later(request, lambda found: known(found.most_items if found else 0))

        made = ThreadGathering(self._begin, limit, key, message_format, self._calls_out)
        return self._gatherings.setdefault((key, message_format), made)

    def stream(self, key: str, message_format: Format | str) -> SignerStream:
        """Returns a stream for one key and format, to be used as a context manager.

            with client.stream("facilities/01-001/keys/records", "JWS") as stream:
                signature = stream.sign(payload)

        It carries items of many threads over one connection, each answered as it is ready.
        ``sign_one`` costs appliance and program less where many items come at once. Raises
        ValueError for an unknown format.
        """
        return SignerStream(self._stream_method, key, Format(message_format))

    def sign(
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
    ) -> Iterator[ItemResult]:
        """Signs any number of payloads; yields one result each, in their order.

        Payloads are read as they are needed, so there may be millions:
        ``in_flight`` batches are sent at a time, each of at most ``batch_items``
        (None: what the policy and the quotas of this key allow, at most 500; one more
        call reads that) and below the API's 4 MiB. ``timeout`` is for each batch.

        Calls refused for load or quota, lost connections and single items that
        an HSM dropped are retried within ``timeout``, no sooner than the
        appliance says. An item that failed is a result with ``error``. Where a
        call fails for good, its items and those already sent still get their
        results; then ``SignerClientError`` is raised.

        ``request_id`` names the whole job: repeated with the same payloads it
        repeats the ids of its calls. With ``revocation`` the results of HCERT have the
        handles of the certificates. ``cosignatures`` are the facilities' signed records, one for
        each payload in its order, where the key demands them. Raises ValueError for an unknown
        format or numbers below 1, before anything is sent.
        """
        wanted = Format(message_format)
        cutting.several(payloads)
        cutting.check(batch_items, in_flight)
        if batch_items is None:
            found = self.get_key(pipeline.key_of(key), timeout=timeout)
            batch_items, in_flight = cutting.plan(found, in_flight)
        job = pipeline.Job(key, wanted, request_id or uuid.uuid4(), timeout, revocation)
        return pipeline.run(
            self._call, cutting.cut(payloads, wanted, batch_items, cosignatures), job, in_flight
        )

    def sign_batch(
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
        response = self._call(request, timeout)
        return pipeline.results_of(pipeline.read_answer(response, len(payloads)))
