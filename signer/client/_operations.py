"""``SignerClient.operations``: the calls of security officers, and their signatures."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from signer.client import _officer_exchanges as exchanges
from signer.client._calls import Awaiting, Blocking, asked, awaited, iterated, paged
from signer.client._cutting import BATCH_BYTES
from signer.client._errors import DeadlineError, SignerClientError
from signer.client._exchanges import DEFAULT_TIMEOUT
from signer.client._values import Operation
from signer.errors import Code

OVER = frozenset({"DONE", "FAILED", "REJECTED", "EXPIRED"})
"""Final states; only a FAILED operation can leave its state, by ``retry``."""

_POLL_SECONDS = 0.5
_OVERHEAD = 8  # tag and length of one certificate


def _unseen(_: object) -> None:
    """Takes progress, and shows none."""


class Operations(Blocking):
    """Operations under dual control, and the stops that one officer may make alone.

    Methods raise ``SignerClientError``; ``timeout`` is in seconds. ``sign_operation``
    signs the ``content`` of an operation, which is text.
    """

    prepare = asked(exchanges.prepare)
    propose = asked(exchanges.propose)
    approve = asked(exchanges.approve)
    reject = asked(exchanges.reject)
    retry = asked(exchanges.retry)
    get = asked(exchanges.get)
    attachment = asked(exchanges.attachment)
    list = paged(exchanges.list_operations)
    officers = asked(exchanges.officers)
    suspend_key = asked(exchanges.suspend_key)
    suspend_facility = asked(exchanges.suspend_facility)
    suspend_group = asked(exchanges.suspend_group)
    suspend_everything = asked(exchanges.suspend_everything)
    mark_compromised = asked(exchanges.mark_compromised)
    suspensions = asked(exchanges.suspensions)

    def policy(self, *, timeout: float = DEFAULT_TIMEOUT) -> Mapping[str, bytes]:
        """Returns the files of the policy in force by name; ``timeout`` is for each page."""
        return _whole_files(self._pages(exchanges.policy_parts(timeout=timeout)))

    def wait(
        self, identity: str, timeout: float, progress: Callable[[Operation], None] = _unseen
    ) -> Operation:
        """Polls every 0.5 s until the operation is over or waits for certificates.

        ``progress`` is called with every answer. Retryable failures, as during a restart
        of the appliance, do not end it. Raises ``DeadlineError`` after ``timeout`` seconds.
        """
        poll = _Poll(identity, timeout, progress)
        while True:
            try:
                over = poll.answered(self.get(identity))
            except SignerClientError as error:
                if poll.gives_up(error):
                    raise
            else:
                if over is not None:
                    return over
            time.sleep(_POLL_SECONDS)

    def import_certificates(
        self,
        identity: str,
        certificates: Iterable[bytes],
        progress: Callable[[int], None] = _unseen,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Operation:
        """Sends certificates (DER or PEM) to a rotation, in calls below the API's 4 MiB.

        The rotation continues with each part, and takes the next when it waits again.
        ``progress`` is called with the number accepted so far. ``timeout`` is for each
        call and each wait; a call accepts all of its certificates or none. Raises
        ValueError if there are none.
        """
        operation, taken = None, 0
        for part in _parts(certificates):
            if operation is not None:
                self.wait(identity, timeout)
            operation = self._ask(exchanges.import_certificates(identity, part, timeout))
            taken += len(part)
            progress(taken)
        if operation is None:
            raise ValueError("give at least one certificate")
        return operation


class AsyncOperations(Awaiting):
    """``Operations`` for asyncio: coroutines, and ``async for`` over ``list``."""

    prepare = awaited(exchanges.prepare)
    propose = awaited(exchanges.propose)
    approve = awaited(exchanges.approve)
    reject = awaited(exchanges.reject)
    retry = awaited(exchanges.retry)
    get = awaited(exchanges.get)
    attachment = awaited(exchanges.attachment)
    list = iterated(exchanges.list_operations)
    officers = awaited(exchanges.officers)
    suspend_key = awaited(exchanges.suspend_key)
    suspend_facility = awaited(exchanges.suspend_facility)
    suspend_group = awaited(exchanges.suspend_group)
    suspend_everything = awaited(exchanges.suspend_everything)
    mark_compromised = awaited(exchanges.mark_compromised)
    suspensions = awaited(exchanges.suspensions)

    async def policy(self, *, timeout: float = DEFAULT_TIMEOUT) -> Mapping[str, bytes]:
        """As ``Operations.policy``."""
        parts = self._pages(exchanges.policy_parts(timeout=timeout))
        return _whole_files([part async for part in parts])

    async def wait(
        self, identity: str, timeout: float, progress: Callable[[Operation], None] = _unseen
    ) -> Operation:
        """As ``Operations.wait``; ``progress`` is a plain function."""
        poll = _Poll(identity, timeout, progress)
        while True:
            try:
                over = poll.answered(await self.get(identity))
            except SignerClientError as error:
                if poll.gives_up(error):
                    raise
            else:
                if over is not None:
                    return over
            await asyncio.sleep(_POLL_SECONDS)

    async def import_certificates(
        self,
        identity: str,
        certificates: Iterable[bytes],
        progress: Callable[[int], None] = _unseen,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Operation:
        """As ``Operations.import_certificates``; ``progress`` is a plain function."""
        operation, taken = None, 0
        for part in _parts(certificates):
            if operation is not None:
                await self.wait(identity, timeout)
            operation = await self._ask(exchanges.import_certificates(identity, part, timeout))
            taken += len(part)
            progress(taken)
        if operation is None:
            raise ValueError("give at least one certificate")
        return operation


class _Poll:
    """What the answers to a waiting officer mean."""

    def __init__(
        self, identity: str, timeout: float, progress: Callable[[Operation], None]
    ) -> None:
        self._identity, self._timeout, self._progress = identity, timeout, progress
        self._end = time.monotonic() + timeout

    def answered(self, operation: Operation) -> Operation | None:
        """Returns it if there is nothing more to wait for; raises DeadlineError."""
        self._progress(operation)
        if operation.state in OVER or operation.state == "WAITING":
            return operation
        if time.monotonic() >= self._end:
            code = Code.DEADLINE_EXCEEDED.name
            text = (
                f"operation {self._identity} is still {operation.state} after {self._timeout:g} s"
            )
            raise DeadlineError(code, code, text)
        return None

    def gives_up(self, error: SignerClientError) -> bool:
        """Whether a failure does not pass, or lasts too long."""
        return not error.retryable or time.monotonic() >= self._end


def _whole_files(parts: Iterable[tuple[str, bytes]]) -> Mapping[str, bytes]:
    files: dict[str, bytes] = {}
    for name, part in parts:
        files[name] = files.get(name, b"") + part
    return files


def _parts(certificates: Iterable[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for certificate in certificates:
        if part and size + len(certificate) + _OVERHEAD > BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(certificate)
        size += len(certificate) + _OVERHEAD
    if part:
        yield part


def sign_operation(
    content: bytes, private_key_pem: bytes, *, password: bytes | None = None
) -> bytes:
    """Returns the signature over an operation's bytes as appliance and auditors accept it.

    ECDSA with SHA-256 (DER), RSA PKCS #1 v1.5 with SHA-256, or Ed25519, by the kind of the
    key. Raises ValueError, which never quotes the key, if it cannot be read or is of
    another kind.
    """
    try:
        key = load_pem_private_key(private_key_pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without its cause, whose text could quote the key.
        raise ValueError(
            "it is not a private key in PEM, or its password is missing or wrong"
        ) from None
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(content, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(content, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            return key.sign(content)
        case _:
            raise ValueError("the private key must be for ECDSA, RSA or Ed25519")
