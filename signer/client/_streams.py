"""What the messages of a SignStream mean; ``_stream_threads`` and ``_stream_tasks`` carry them.

Every request has one payload and a request id of its own. When a stream ends, requests
without an answer have failed with the end's error; if that is retryable, each request goes again on
the next stream under the same id, and the appliance signs it once.
"""

import time
import uuid
from typing import Any

from signer.client._cutting import fits, octets, too_large
from signer.client._errors import SignerClientError, from_call_status
from signer.client._pipeline import deadline_of, read_answer, request_of
from signer.model import Format
from signer.v1.signing_pb2 import SignStreamRequest, SignStreamResponse

WITHOUT_ANSWER = "the appliance ended the stream before it answered"

METHOD = "/signer.v1.SigningService/SignStream"


def stream_method(channel: Any) -> Any:
    """Returns the method of a channel, blocking or not."""
    return channel.stream_stream(
        METHOD,
        request_serializer=SignStreamRequest.SerializeToString,
        response_deserializer=SignStreamResponse.FromString,
    )


class Streamed:
    """One payload on its way, until it has its signature."""

    __slots__ = ("_batch", "_deadline", "over", "timeout")

    def __init__(self, key: str, message_format: Format, payload: bytes, timeout: float) -> None:
        payload = octets(payload)
        if not fits(len(payload), message_format):
            raise too_large(len(payload))
        self._batch = request_of(key, message_format, [payload], str(uuid.uuid4()))
        self.timeout = timeout
        self._deadline = deadline_of(timeout)
        self.over = False
        """Its caller has left: it is not sent, unless it was sent already."""

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._deadline - time.monotonic())

    def request(self, tag: int) -> SignStreamRequest:
        """Returns the message, with the time that is left now."""
        message = SignStreamRequest(tag=tag, batch=self._batch)
        message.timeout.FromMilliseconds(int(1000 * self.left))
        return message

    def signature(self, response: SignStreamResponse) -> bytes:
        """Returns the signature of an answer. Raises SignerClientError, ItemError."""
        if response.WhichOneof("result") != "batch":
            raise from_call_status(response.error)
        answer = read_answer(response.batch, 1)
        error: SignerClientError | None = answer.failures.get(0)
        if error is not None:
            # It was answered: another attempt is another request.
            self._batch.request_id = str(uuid.uuid4())
            raise error
        return answer.signatures[0]
