"""The load client in Python, a program: ``python -m signer.tools.bench.python_load --help``.

It costs more CPU an item than the one in Go. All callers are tasks of one event loop. With
``--step`` a line of its input may say the pace of its turn.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

import signer.client
from signer.client._channels import CHANNEL_OPTIONS
from signer.model import Format, KeyName
from signer.tools.bench.figures import quantile
from signer.tools.bench.workload import BAD, PAYLOADS, Requests, batches, record_beside, requests
from signer.v1 import signing_pb2

_BATCH = "/signer.v1.SigningService/SignBatch"
_STREAM = "/signer.v1.SigningService/SignStream"
_TIMEOUT = 60.0
_READ_EVERY = 16  # of batches; answers to single items are all read
_AFTER_REFUSAL = 0.01  # seconds: a caller that was refused does not become a flood
_REFUSALS = {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
_CODES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class LoadFailed(Exception):
    """An answer that no load may cause; the text says which."""


class Tally:
    """What all callers got in one turn."""

    def __init__(self, begin: float, end: float) -> None:
        self._begin = begin
        self._end = end
        self.within = 0.0  # items; a request counts by the part of its time in the turn's seconds
        self.items = 0
        self.latencies: list[int] = []
        self.refusals: list[int] = []  # how long it took to be refused, in µs
        self.failures: Counter[str] = Counter()

    def over(self) -> bool:
        """Whether this turn has ended: nothing further is sent."""
        return time.monotonic() >= self._end

    def answered(self, sent: float, items: int) -> None:
        """Notes a request with its items that came out as they have to."""
        now = time.monotonic()
        self.items += items
        inside = min(now, self._end) - max(sent, self._begin)
        self.within += items * max(0.0, inside) / max(1e-9, now - sent)
        if items and self._begin <= now < self._end:
            self.latencies.append(int((now - sent) * 1e6))

    @property
    def end(self) -> float:
        return self._end

    async def refused(self, sent: float, status: status_pb2.Status) -> None:
        """Notes a request that failed as a whole."""
        reason = _reason(status)
        if _CODES.get(status.code) not in _REFUSALS:
            raise LoadFailed(f"a request failed: {reason}: {status.message}")
        self.failures[reason] += 1
        now = time.monotonic()
        if reason == "OVERLOADED" and self._begin <= now < self._end:
            self.refusals.append(int((now - sent) * 1e6))
        await asyncio.sleep(_AFTER_REFUSAL)


Caller = Callable[[Tally], Awaitable[None]]
"""Loads the appliance until the turn of the tally is over."""


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    found = next((info.reason for detail in status.details if detail.Unpack(info)), "")
    return found or _CODES.get(status.code, "UNKNOWN")


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    found = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads what both have
    code: tuple[int, str] = error.code().value
    return found or status_pb2.Status(code=code[0], message=error.details() or "")


class Answers:
    """Reads answers to requests of ``batch`` items."""

    def __init__(self, batch: int, *, bad: bool) -> None:
        self._batch = batch
        self._bad = bad
        self._seen = 0

    def good(self, answer: bytes, tally: Tally) -> int:
        """Returns how many items came out as they have to; of batches, most are not read."""
        self._seen += 1
        if self._batch > 1 and self._seen % _READ_EVERY != 1:
            return self._batch
        return self.read(signing_pb2.SignBatchResponse.FromString(answer), tally)

    def read(self, answer: signing_pb2.SignBatchResponse, tally: Tally) -> int:
        """The same of a message. Raises LoadFailed if it does not fit the request."""
        failed = len(answer.failures)
        if len(answer.signatures) != self._batch:
            raise LoadFailed("an answer has not one signature for each payload")
        if self._bad:
            if failed != self._batch:
                raise LoadFailed(f"{self._batch - failed} items were signed that do not parse")
            return failed
        tally.failures.update(map(_reason, answer.failures.values()))
        if sum(map(bool, answer.signatures)) != self._batch - failed:
            raise LoadFailed("signatures are missing in an answer")
        return self._batch - failed


class Calls:
    """A caller that makes one call after the other, or one call at a given time."""

    def __init__(
        self, channel: grpc.aio.Channel, source: Requests, answers: Answers, deadline: float
    ) -> None:
        # Without serialisers gRPC takes and gives bytes.
        self._method: Any = channel.unary_unary(_BATCH)
        self._source, self._answers, self._deadline = source, answers, deadline
        self._number = 0

    async def __call__(self, tally: Tally) -> None:
        while not tally.over():
            await self.one(tally, time.monotonic())

    async def one(self, tally: Tally, sent: float) -> None:
        """Makes one call, which was to be sent at this time."""
        self._number += 1
        try:
            answer = await self._method(self._source(self._number), timeout=self._deadline)
        except grpc.aio.AioRpcError as error:
            await tally.refused(sent, _status(error))
        else:
            tally.answered(sent, self._answers.good(answer, tally))


async def paced(callers: Sequence[Calls], pace: float, tally: Tally) -> None:
    """Has the callers send in turn, at random times that do not depend on answers."""
    gaps, at = Random(len(callers)), time.monotonic()  # noqa: S311  they only have to differ
    async with asyncio.TaskGroup() as tasks:
        for caller in itertools.cycle(callers):
            at += gaps.expovariate(pace)
            if at >= tally.end:
                return
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            tasks.create_task(caller.one(tally, at))


def messages(channel: grpc.aio.Channel, source: Requests, answers: Answers, window: int) -> Caller:
    """Returns a caller that keeps ``window`` messages in flight on a stream of its own."""
    stream: Any = channel.stream_stream(_STREAM)()
    sent = [0.0] * window
    number = 0

    async def send(tag: int) -> None:
        nonlocal number
        number, sent[tag] = number + 1, time.monotonic()
        batch = signing_pb2.SignBatchRequest.FromString(source(number))
        message = signing_pb2.SignStreamRequest(tag=tag, batch=batch)
        await stream.write(message.SerializeToString())

    async def load(tally: Tally) -> None:
        for tag in range(window):
            await send(tag)
        in_flight = window
        while in_flight:
            received = await stream.read()
            if received is grpc.aio.EOF:
                raise LoadFailed(f"the stream has ended: {await stream.details()}")
            answer = signing_pb2.SignStreamResponse.FromString(received)
            if answer.HasField("error"):
                await tally.refused(sent[answer.tag], answer.error)
            else:
                tally.answered(sent[answer.tag], answers.read(answer.batch, tally))
            if tally.over():
                in_flight -= 1
            else:
                await send(answer.tag)

    return load


def gatherer(client: Any, options: argparse.Namespace, number: int) -> Caller:
    """Returns a task of a program that signs one item after the other with ``sign_one``."""
    source = Random(number)  # noqa: S311  payloads only have to differ
    make = PAYLOADS[Format(options.format)]
    key = options.keys[number % len(options.keys)]

    async def load(tally: Tally) -> None:
        while not tally.over():
            sent = time.monotonic()
            try:
                signature = await client.sign_one(key, options.format, make(source))
            except signer.client.SignerClientError as error:
                tally.failures[error.reason] += 1
                await asyncio.sleep(_AFTER_REFUSAL)
            else:
                tally.answered(sent, bool(signature))

    return load


async def take_turn(
    options: argparse.Namespace, callers: Sequence[Any], pace: float
) -> dict[str, Any]:
    """Loads the appliance for one turn; returns the line that describes it."""
    cpu, begin = time.process_time(), time.monotonic() + options.warm_up
    tally = Tally(begin, begin + options.seconds)
    if pace:
        await paced(callers, pace, tally)
    else:
        async with asyncio.TaskGroup() as tasks:
            for caller in callers:
                tasks.create_task(_run(caller, tally))
    used = time.process_time() - cpu
    return {
        "rate": tally.within / options.seconds,
        "p50_ms": quantile(tally.latencies, 0.50) / 1000,
        "p99_ms": quantile(tally.latencies, 0.99) / 1000,
        "items": tally.items,
        "failures": dict(tally.failures),
        "client_cpu_us_per_item": used * 1e6 / max(1, tally.items),
        **({"latencies_us": tally.latencies, "refused_us": tally.refusals} if options.step else {}),
    }


async def _run(caller: Caller, tally: Tally) -> None:
    await caller(tally)


def _channel(options: argparse.Namespace, number: int) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        options.ca.read_bytes(), options.key.read_bytes(), options.certificate.read_bytes()
    )
    settings: list[tuple[str, int | str]] = [*CHANNEL_OPTIONS]
    settings += [
        ("grpc.ssl_target_name_override", options.server_name),
        # Channels with the same settings share one connection.
        ("grpc.channel_number", number),
    ]
    return grpc.aio.secure_channel(options.address, credentials, settings)


async def _callers(options: argparse.Namespace) -> list[Caller]:
    """Connects, and returns the callers."""
    if options.gather:
        kind: Any = getattr(signer.client, "AsyncSignerClient", None)
        if kind is None:
            raise LoadFailed("this checkout's client has no AsyncSignerClient")
        client = kind.from_files(
            options.address,
            ca=options.ca,
            certificate=options.certificate,
            key=options.key,
            server_name=options.server_name,
        )
        await _sign_once(client, options)  # no measurement has the connection's handshake
        return [gatherer(client, options, number) for number in range(options.callers)]
    channels = [_channel(options, number) for number in range(options.connections)]
    keys = [KeyName.parse(name) for name in options.keys]
    made: list[Caller] = []
    for number in range(options.callers):
        channel = channels[number % len(channels)]
        sent = batches(Format(options.format), options.batch, number, bad=options.bad)
        if options.cosigner:
            await _cosign(channel, options.cosigner, sent)
        source = requests(sent, keys, number, options.callers)
        if number < len(channels):
            first: Any = channel.unary_unary(_BATCH)
            await first(source(0), timeout=_TIMEOUT)
        answers = Answers(options.batch, bad=options.bad is not None)
        if options.window:
            made.append(messages(channel, source, answers, options.window))
        else:
            made.append(Calls(channel, source, answers, options.deadline))
    return made


async def _cosign(
    channel: grpc.aio.Channel, key: str, sent: Sequence[signing_pb2.SignBatchRequest]
) -> None:
    """Puts the record beside each certificate, signed by a facility's key."""
    method: Any = channel.unary_unary(_BATCH)
    for batch in sent:
        asked = signing_pb2.SignBatchRequest(
            key=key,
            format=signing_pb2.FORMAT_JWS,
            payloads=[record_beside(payload) for payload in batch.payloads],
        )
        answer = await method(asked.SerializeToString(), timeout=_TIMEOUT)
        batch.cosignatures.extend(signing_pb2.SignBatchResponse.FromString(answer).signatures)


async def _sign_once(client: Any, options: argparse.Namespace) -> None:
    payload = PAYLOADS[Format(options.format)](Random(0))  # noqa: S311  as above
    await client.sign_one(options.keys[0], options.format, payload)


async def _main(options: argparse.Namespace) -> None:
    callers = await _callers(options)
    if not options.step:
        line = await take_turn(options, callers, options.pace)
        print(json.dumps(line), flush=True)  # noqa: T201
        return
    print("ready", flush=True)  # noqa: T201  a program's output
    while read := await asyncio.to_thread(sys.stdin.readline):
        line = await take_turn(options, callers, float(read.strip() or options.pace))
        print(json.dumps(line), flush=True)  # noqa: T201


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python_load", description=__doc__)
    parser.add_argument("--address", required=True, metavar="HOST:PORT")
    parser.add_argument("--server-name", default="localhost")
    for name in ("--ca", "--certificate", "--key"):
        parser.add_argument(name, required=True, type=Path, metavar="PEM")
    parser.add_argument("--name", action="append", default=[], help="a key; may be repeated")
    parser.add_argument("--names", type=Path, metavar="FILE", help="names of keys, one a line")
    parser.add_argument("--format", default="MESSAGE", choices=[each.name for each in PAYLOADS])
    parser.add_argument("--cosigner", metavar="KEY", help="signs the record beside each HCERT")
    parser.add_argument("--bad", choices=BAD, help="payloads that do not parse")
    parser.add_argument("--batch", type=int, default=1, help="items a request")
    parser.add_argument("--callers", type=int, default=16, help="calls at a time, or streams")
    parser.add_argument("--window", type=int, default=0, help="messages in flight on a stream")
    parser.add_argument("--connections", type=int, default=1, help="callers share them")
    parser.add_argument("--gather", action="store_true", help="callers are tasks with sign_one")
    parser.add_argument("--pace", type=float, default=0, help="requests a second; see paced")
    parser.add_argument("--deadline", type=float, default=60, help="of a call, in seconds")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--warm-up", type=float, default=0.2)
    parser.add_argument("--step", action="store_true", help="measure for every line of input")
    options = parser.parse_args(arguments)
    named = options.names.read_text().split() if options.names else []
    options.keys = [*options.name, *named]
    if not options.keys:
        parser.error("--name or --names is needed")
    if options.pace and (options.window or options.gather):
        parser.error("--pace is for calls")
    return options


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def main() -> None:
    """Runs the program; what fails ends it with a text on stderr and status 1."""
    options = _options()
    try:
        asyncio.run(_main(options))
    except BaseExceptionGroup as group:
        sys.exit(f"{_first(group)}")
    except (LoadFailed, grpc.RpcError, signer.client.SignerClientError, OSError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
