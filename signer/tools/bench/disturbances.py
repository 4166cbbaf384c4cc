"""What goes on at an appliance besides signing: scrapes, reloads, officers' acts."""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

from signer.client import SignerClient
from signer.client._errors import SignerClientError
from signer.client._operations import OVER, sign_operation
from signer.errors import OperatorError
from signer.tools.dev.appliance import connect

_GROUP = "99"  # of the facilities for load tests, which sign nothing meanwhile
_SCRAPES, _RELOADS, _ACTS = 0.1, 0.5, 0.5  # seconds between two of a kind


class Disturbances:
    """Threads that scrape /metrics, reload the policy, and suspend and resume a group.

    Each change of the group is one that the follower of the registry reads. Nothing happens
    before ``resume`` and after ``pause``. At the end the group is not suspended.
    """

    def __init__(self, dev: Mapping[str, Any]) -> None:
        self._dev = dev
        self._on, self._end = threading.Event(), threading.Event()
        self._errors: list[str] = []
        self._stack = ExitStack()
        self._threads: list[threading.Thread] = []
        self._suspended = False

    def __enter__(self) -> Self:
        names = ("operator", "officer-a", "officer-b")
        operator, *officers = (self._stack.enter_context(connect(self._dev, n)) for n in names)
        for seconds, act in (
            (_SCRAPES, self._scrape),
            (_RELOADS, operator.reload),
            (_ACTS, lambda: self._change(*officers)),
        ):
            thread = threading.Thread(target=self._repeat, args=(seconds, act))
            thread.start()
            self._threads.append(thread)
        self._officers = officers
        return self

    def resume(self) -> None:
        """Begins to disturb. Raises OperatorError if anything of it has failed so far."""
        self._on.set()
        if self._errors:
            raise OperatorError(f"a call beside the load failed: {self._errors[0]}")

    def pause(self) -> None:
        """Stops the disturbance, once what has begun is over."""
        self._on.clear()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._on.set()
        for thread in self._threads:
            thread.join()
        try:
            if self._suspended:
                self._change(*self._officers)
        finally:
            self._stack.close()

    def _repeat(self, seconds: float, act: Callable[[], object]) -> None:
        while not self._end.is_set():
            self._on.wait()
            if self._end.is_set():
                return
            try:
                act()
            except (SignerClientError, OSError, HTTPException) as error:
                self._errors.append(str(error))
                return
            self._end.wait(seconds)

    def _scrape(self) -> None:
        with urlopen(f"{self._dev['metrics']}/metrics", timeout=10) as page:  # noqa: S310  of dev.json
            page.read()

    def _change(self, first: SignerClient, second: SignerClient) -> None:
        """Suspends the group, or has two officers resume it."""
        if not self._suspended:
            first.operations.suspend_group(_GROUP, "signer bench")
            self._suspended = True
            return
        keys = [
            Path(self._dev["clients"][name]["key"]).read_bytes()
            for name in ("officer-a", "officer-b")
        ]
        content = first.operations.prepare("resume", {"target": f"groups/{_GROUP}"}).content
        proposed = first.operations.propose(content, sign_operation(content, keys[0]))
        second.operations.approve(proposed.id, sign_operation(content, keys[1]))
        while first.operations.get(proposed.id).state not in OVER:
            self._end.wait(0.05)
        self._suspended = False
