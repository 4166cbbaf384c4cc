"""Two appliances on one registry, restarted one after the other under calls of both kinds.

Plain gRPC stubs, which try nothing again, and the client library. Both balance between the
appliances and watch their health.
"""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from typing import Any, Self

import grpc
import pytest
import yaml

from signer.audit.format.record import RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import secure_channel
from signer.tools.dev.appliance import connect
from tests.appliances import Appliance
from tests.commands import signer
from tests.daemon import Daemon, beside
from tests.integration import edge

PLAIN, LIBRARY = edge.RECORDS, "facilities/01-002/keys/records"
THREADS = 3
PAUSE = 0.01
"""Seconds between two calls of a thread: the machine is shared with what is restarted."""


NOTICE = 5.0
"""Seconds, not the default's one: beside other tests a client may not be scheduled for so long."""


class Pair:
    """Both appliances, and how callers reach them as one."""

    def __init__(self, both: tuple[Daemon, Daemon], dev: dict[str, Any]) -> None:
        self.both = both
        addresses = ",".join(each.settings["listen"] for each in both)
        self.dev = {**dev, "address": addresses}

    def give_notice(self, seconds: float) -> None:
        """Has their next stop give this notice; restarts those that would give another."""
        for each in self.both:
            settings = yaml.safe_load(each.config.read_text())
            if settings["limits"]["drain_notice_seconds"] == seconds:
                continue
            settings["limits"]["drain_notice_seconds"] = seconds
            each.config.write_text(yaml.safe_dump(settings))
            assert each.stop() == 0
            each.start()

    def intents(self) -> dict[str, Counter[str]]:
        """How often each request id is in both logs together, by the key it named."""
        found: dict[str, Counter[str]] = {PLAIN: Counter(), LIBRARY: Counter()}
        for each in self.both:
            folder = each.config.parent / each.settings["audit"]["directory"]
            reader = Reader(list_segments(folder))
            for record in reader.records(0, reader.size):
                if record.kind is RecordKind.INTENT:
                    key = str(record.fields["key_version"]).partition("/versions/")[0]
                    found[key][str(record.fields["request_id"])] += 1
        return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Appliance(tmp_path_factory.mktemp("rolling") / "dev")
    made.init()
    made.set_workers(1)
    made.configure({"audit": {"directory": "audit", "origin": "signer/audit"}})
    made.configure({"limits": {"drain_notice_seconds": NOTICE}})
    second = beside(made)
    joined = signer("init", "--config", second, "--join", "--without-log", "it has not run yet")
    assert joined.code == 0, joined.err
    with ExitStack() as stack:
        both = Daemon(made.dir / "signer.yaml"), Daemon(second)
        for each in both:
            each.start()
            stack.callback(each.stop)
        yield Pair(both, made.dev)


class Calls:
    """Threads that call inside a ``with`` block; ``made`` has the id of each call, by its key."""

    def __init__(self, pair: Pair) -> None:
        self.made: dict[str, list[str]] = {PLAIN: [], LIBRARY: []}
        self.failures: dict[str, list[str]] = {PLAIN: [], LIBRARY: []}
        self._pair, self._over = pair, threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        identity = self._pair.dev["clients"]["issuer"]
        channel = secure_channel(
            self._pair.dev["address"],
            ca=self._pair.dev["ca"],
            certificate=identity["cert"],
            key=identity["key"],
            server_name=self._pair.dev["server_name"],
        )
        stubs = self._stack.enter_context(edge.Stubs(channel))
        client = self._stack.enter_context(connect(self._pair.dev, "issuer"))

        def plain() -> str:
            request_id = str(uuid.uuid4())
            answer = stubs.sign([b"{}"], format="FORMAT_MESSAGE", request_id=request_id)
            assert not answer.failures
            return request_id

        def library() -> str:
            base = uuid.uuid4()
            [item] = client.sign(LIBRARY, "JWS", [b"{}"], batch_items=1, request_id=base)
            assert item.ok, item.error
            return str(uuid.uuid5(base, "0/0"))

        for key, call in ((PLAIN, plain), (LIBRARY, library)):
            for _ in range(THREADS):
                thread = threading.Thread(target=self._run, args=(call, key))
                thread.start()
                self._stack.callback(thread.join, edge.SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._stack.close()

    def _run(self, call: Callable[[], str], key: str) -> None:
        while not self._over.wait(PAUSE):
            try:
                self.made[key].append(call())
            except Exception as error:  # noqa: BLE001 - whatever it is, a call has failed
                told = error.code().name if isinstance(error, grpc.Call) else repr(error)
                self.failures[key].append(told)

    def reach(self, served: Daemon) -> None:
        """Waits until calls of both kinds are answered by an appliance that has just started."""
        edge.until(
            lambda: {"MESSAGE", "JWS"} <= formats_signed(served),
            f"{served.config.name} is called again",
            60,
        )


def formats_signed(served: Daemon) -> set[str]:
    host, _, port = served.settings["metrics"].partition(":")
    with closing(HTTPConnection(host, int(port), timeout=20)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    lines = [line for line in text.splitlines() if line.startswith("signer_items_total{")]
    return {
        line.partition('format="')[2].partition('"')[0]
        for line in lines
        if not line.endswith(" 0.0")
    }


@pytest.mark.parametrize(
    ("times", "notice"),
    [
        (2, NOTICE),
        pytest.param(40, 1.0, marks=pytest.mark.torture),  # the default
    ],
)
def test_no_call_fails_while_one_after_the_other_is_restarted(
    pair: Pair, times: int, notice: float
) -> None:
    pair.give_notice(notice)
    before = pair.intents()
    with Calls(pair) as calls:
        for number in range(times):
            served = pair.both[number % 2]
            calls.reach(served)
            calls.reach(pair.both[1 - number % 2])
            assert served.stop() == 0
            served.start()
        for served in pair.both:
            calls.reach(served)
    assert calls.failures == {PLAIN: [], LIBRARY: []}
    after = pair.intents()
    for key, made in calls.made.items():
        assert len(made) > 10 * times
        # Nothing was tried again, so nothing was signed or counted twice.
        assert after[key] - before[key] == Counter(made)
    for served in pair.both:
        assert served.verified()["problems"] == []


def test_a_killed_one_costs_the_library_time_and_no_call(pair: Pair) -> None:
    """No notice is given: plain calls at work are lost, those of the library go to the other."""
    killed = pair.both[0]
    with Calls(pair) as calls:
        for served in pair.both:
            calls.reach(served)
        assert killed.process is not None
        killed.process.kill()
        killed.process.wait()
        done = len(calls.made[LIBRARY])
        edge.until(lambda: len(calls.made[LIBRARY]) > done + 20, "the other one answers")
        killed.start()
        calls.reach(killed)
    assert calls.failures[LIBRARY] == []
    assert set(calls.failures[PLAIN]) <= {"UNAVAILABLE"}
    # What the killed one had begun was signed by the other under the same id: at most twice.
    times = pair.intents()[LIBRARY]
    assert {times[each] for each in calls.made[LIBRARY]} <= {1, 2}
