import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from signer.errors import OperatorError
from signer.key_index import KeyIndex
from signer.keys import database
from signer.keys.database import RegistryError
from signer.keys.registry import Registry
from signer.keys.schema import key_versions
from signer.keys.writing import Change
from signer.model import KeyState, Scope, Suspension
from tests.unit.keys.made import make

ROUNDS = 25


def at_once(*tasks: Callable[[], object]) -> None:
    """Runs them all at the same time; what one raises is raised."""
    together = threading.Barrier(len(tasks))

    def run(task: Callable[[], object]) -> None:
        together.wait()
        task()

    with ThreadPoolExecutor(len(tasks)) as threads:
        futures = [threads.submit(run, task) for task in tasks]
        for future in futures:
            future.result()


def test_writers_queue_and_what_they_read_stays_true(registry: Registry, url: str) -> None:
    def count_up(own: Registry) -> None:
        for _ in range(ROUNDS):
            with own.writing() as write:
                counted = sa.select(sa.func.count()).select_from(key_versions)
                number = write.connection.execute(counted).scalar_one()
                # Had another writer read the same, this number would be there already.
                write.add_versions([make("one", number + 1)])

    with Registry.open(url) as other:
        at_once(lambda: count_up(registry), lambda: count_up(registry), lambda: count_up(other))
    expected = [make("one", number) for number in range(1, 3 * ROUNDS + 1)]
    assert registry.snapshot() == KeyIndex(expected, 3 * ROUNDS)


def test_writers_that_count_nothing_queue_too(registry: Registry, url: str) -> None:
    def note(own: Registry) -> None:
        for _ in range(ROUNDS):
            with own.writing(counts=False) as write:
                [before] = write.connection.execute(sa.select(key_versions.c.request))
                count = int(before.request or 0) + 1
                write.connection.execute(sa.update(key_versions).values(request=str(count)))

    registry.add_version(make())
    with Registry.open(url) as other:
        at_once(lambda: note(registry), lambda: note(other))
    assert registry.snapshot() == KeyIndex([replace(make(), request=str(2 * ROUNDS))], 1)


def test_of_two_changes_of_one_version_one_is_refused(registry: Registry, url: str) -> None:
    refused = []

    def move(own: Registry, to: KeyState) -> None:
        try:
            with own.writing() as write:
                write.change([Change(make(), replace(make(), state=to))])
        except OperatorError as error:
            refused.append((to, str(error)))

    registry.add_version(make())
    moves = {KeyState.SUSPENDED, KeyState.COMPROMISED}
    with Registry.open(url) as other:
        at_once(
            lambda: move(registry, KeyState.SUSPENDED), lambda: move(other, KeyState.COMPROMISED)
        )
    [(loser, reason)] = refused
    [winner] = moves - {loser}
    assert "has changed meanwhile" in reason
    assert registry.snapshot() == KeyIndex([replace(make(), state=winner)], 2)


def test_a_reader_misses_nothing_and_sees_no_half_of_a_transaction(
    registry: Registry, url: str
) -> None:
    """Each transaction adds a version, changes another, and sets a flag."""
    writers, finished = 2, []

    def write(own: Registry, name: str) -> None:
        try:
            last = make(name)
            for number in range(2, ROUNDS + 2):
                with own.writing() as write:
                    added = make(name, number)
                    write.change([Change(last, replace(last, state=KeyState.DEACTIVATED))])
                    write.add_versions([added])
                    write.suspend(Suspension(Scope.GROUP, f"{name}-{number}", 1.0, "o", "r"))
                last = added
        finally:
            finished.append(name)

    def follow(own: Registry) -> None:
        index, over = KeyIndex(), False
        while not over:
            over = len(finished) == writers
            state = own.state(since=index)
            index = state.keys
            active = [version for version in index if version.state is KeyState.ACTIVE]
            assert (len(active), len(state.suspensions)) == (writers, index.revision - 1)
            assert len(index) == writers + index.revision - 1
        assert own.state(since=index) == own.state()

    with registry.writing() as first:
        first.add_versions([make("a"), make("b")])
    with Registry.open(url) as other, Registry.open(url) as third:
        at_once(
            lambda: write(registry, "a"),
            lambda: write(other, "b"),
            lambda: follow(registry),
            lambda: follow(third),
        )
    assert registry.revision() == 1 + writers * ROUNDS


def test_a_writer_does_not_wait_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LOCK_WAIT_MS", 50)
    with Registry.open(url, create=True) as first, Registry.open(url) as second:
        with first.writing() as write:
            write.add_versions([make()])
            with pytest.raises(RegistryError, match=r"cannot write the registry: .*lock"):
                second.add_version(make("other"))
            assert second.revision() == 0  # readers do not wait
        second.add_version(make("other"))
        assert first.snapshot() == KeyIndex([make(), make("other")], 2)
