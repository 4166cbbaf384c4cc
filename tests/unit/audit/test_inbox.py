import threading
from collections.abc import Callable, Sequence

import pytest

from signer.audit.format.record import RecordKind
from signer.audit.write.inbox import AuditUnavailable, Entry, Inbox


class Waiter:
    """Keeps what it is told: the numbers, or the texts of errors, of one call each."""

    def __init__(self) -> None:
        self.told: list[list[int | str]] = []

    def finished(self, entries: Sequence[Entry]) -> None:
        self.told.append([str(entry.error) if entry.error else entry.seq for entry in entries])


def an_inbox(on_stop: Callable[[str], None] = lambda _: None) -> Inbox:
    return Inbox(on_stop)


def put(inbox: Inbox, kind: RecordKind = RecordKind.INTENT, waiter: Waiter | None = None) -> Entry:
    entry = Entry(kind, {}, finished=waiter.finished if waiter else None)
    for refused in inbox.put_all((entry,)):
        assert refused.error is not None
        raise refused.error
    return entry


def written(inbox: Inbox, entries: list[Entry], first: int = 0) -> None:
    """What the writer does once the records are durable."""
    inbox.answer(entries, range(first, first + len(entries)))
    inbox.tell(entries)


def test_a_waiter_gets_all_numbers_of_a_commit_at_once() -> None:
    inbox, one, other = an_inbox(), Waiter(), Waiter()
    waiters = [one, other, one]
    entries = [put(inbox, waiter=waiter) for waiter in waiters]
    assert inbox.more() == entries
    written(inbox, entries, 7)
    assert (one.told, other.told) == ([[7, 9]], [[8]])


def test_a_waiter_that_raises_disturbs_no_other() -> None:
    errors: list[Exception] = []

    def broken(_: Sequence[Entry]) -> None:
        raise KeyError("a mistake of ours")

    inbox, other = Inbox(lambda _: None, errors.append), Waiter()
    inbox.put_all([Entry(RecordKind.TOKEN, {}, finished=broken)])
    put(inbox, waiter=other)
    written(inbox, inbox.more())
    assert other.told == [[1]]
    assert [type(error) for error in errors] == [KeyError]


def test_an_abandoned_intent_that_waits_is_withdrawn() -> None:
    inbox, waiter = an_inbox(), Waiter()
    gone, other = put(inbox, waiter=waiter), put(inbox, waiter=waiter)
    assert inbox.abandon(gone, "CANCELLED")
    assert inbox.more() == [gone, other]
    assert isinstance(gone.error, AuditUnavailable)
    assert (gone.begun, other.begun) == (False, True)


def test_an_abandoned_intent_that_is_being_written_is_closed_before_all_that_came_since() -> None:
    inbox = an_inbox()
    gone = put(inbox)
    taken = inbox.more()
    assert inbox.abandon(gone, "DEADLINE_TOO_SHORT")
    again = put(inbox)  # its caller asks again, under the same request id
    written(inbox, taken, 5)
    closing, last = inbox.more()
    assert closing.kind is RecordKind.INDETERMINATE
    assert closing.fields == {"intent": 5, "reason": "DEADLINE_TOO_SHORT"}
    assert last is again


def test_an_intent_that_is_durable_or_refused_is_not_abandoned() -> None:
    inbox = an_inbox()
    durable, refused = put(inbox), put(inbox)
    inbox.more()
    inbox.answer([durable], [3])  # its waiter has not been told yet
    refused.error = ValueError()
    assert not inbox.abandon(durable, "CANCELLED")
    assert not inbox.abandon(refused, "CANCELLED")
    inbox.close()
    assert inbox.more() == []


def test_an_abandoned_intent_that_fails_is_not_closed() -> None:
    inbox, waiter = an_inbox(), Waiter()
    gone = put(inbox, waiter=waiter)
    taken = inbox.more()
    assert inbox.abandon(gone, "CANCELLED")
    inbox.fail(taken, "the disk is gone")
    assert waiter.told == [["the disk is gone"]]
    assert isinstance(gone.error, AuditUnavailable)


def test_records_that_go_together_are_taken_together_or_refused_one_by_one() -> None:
    inbox, waiter = an_inbox(), Waiter()
    entries = [Entry(RecordKind.INTENT, {}, finished=waiter.finished) for _ in range(3)]
    assert inbox.put_all(entries) == []
    assert inbox.more() == entries
    inbox.stop_intents("the disk is low")
    outcome = Entry(RecordKind.OUTCOME, {}, finished=waiter.finished)
    intent = Entry(RecordKind.INTENT, {}, finished=waiter.finished)
    assert inbox.put_all([outcome, intent]) == [intent]
    assert str(intent.error) == "the disk is low"
    assert inbox.more() == [outcome]
    inbox.fail([outcome], "the disk is gone")
    assert inbox.put_all([outcome, intent]) == [outcome, intent]


@pytest.mark.parametrize("stop", [Inbox.stop_intents, lambda inbox, why: inbox.fail([], why)])
def test_whoever_watches_hears_before_anybody_is_refused(
    stop: Callable[[Inbox, str], None],
) -> None:
    heard: list[str] = []
    refused: list[list[str]] = []

    def ask() -> None:
        try:
            while True:
                put(inbox)
                threading.Event().wait(0.001)
        except AuditUnavailable:
            refused.append(list(heard))

    def on_stop(why: str) -> None:
        # Callers find out by themselves that it is over, but are not told so yet.
        assert why in {inbox.failed, inbox.low}
        # The lock is free: what is told may need the event loop, and that may be in ``put``.
        put(inbox)
        threading.Event().wait(0.05)
        heard.append(why)

    inbox = an_inbox(on_stop)
    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    stop(inbox, "no room")
    for caller in callers:
        caller.join()
    assert refused == [["no room"]] * 4


def test_a_waiter_is_refused_even_where_nobody_can_be_told_of_the_stop() -> None:
    def on_stop(_: str) -> None:
        raise BrokenPipeError

    inbox, waiter = an_inbox(on_stop), Waiter()
    put(inbox, waiter=waiter)
    with pytest.raises(BrokenPipeError):
        inbox.fail([], "the disk is gone")
    assert waiter.told == [["the disk is gone"]]


def test_a_low_disk_takes_all_but_intents() -> None:
    inbox = an_inbox()
    inbox.stop_intents("low")
    with pytest.raises(AuditUnavailable, match="low"):
        put(inbox)
    outcome = put(inbox, RecordKind.OUTCOME)
    assert inbox.more() == [outcome]


def test_a_closed_inbox_gives_out_what_it_has() -> None:
    inbox = an_inbox()
    entry = put(inbox)
    inbox.close()
    with pytest.raises(AuditUnavailable, match="closed"):
        put(inbox)
    assert inbox.more() == [entry]
    assert inbox.more() == []


def test_entries_are_claimed_while_nobody_works_on_earlier_ones() -> None:
    inbox = an_inbox()
    assert inbox.claim() == []
    first = put(inbox)
    assert inbox.claim() == [first]
    second = put(inbox)
    assert inbox.claim() == [], "somebody works on the first one"
    assert inbox.more() == [second]
    assert inbox.claim() == []
    assert inbox.more() == []
    third = put(inbox)
    assert inbox.claim() == [third]


def test_it_is_finished_when_it_is_closed_and_nobody_works() -> None:
    inbox = an_inbox()
    assert not inbox.finished
    put(inbox)
    inbox.close()
    assert not inbox.finished, "an entry waits"
    assert len(inbox.claim()) == 1
    assert not inbox.finished, "somebody works on it"
    assert inbox.more() == []
    assert inbox.finished


def test_a_failure_ends_the_work() -> None:
    inbox, waiter = an_inbox(), Waiter()
    put(inbox, waiter=waiter)
    inbox.fail(inbox.claim(), "the disk is gone")
    assert waiter.told == [["the disk is gone"]]
    assert inbox.finished


def test_a_fault_that_another_finds_leaves_the_work_with_its_owner() -> None:
    stops: list[str] = []
    inbox, waiter = an_inbox(stops.append), Waiter()
    gone = put(inbox, waiter=waiter)
    taken = inbox.claim()
    inbox.abandon(gone, "CANCELLED")
    inbox.fail((), "the file is gone")
    written(inbox, taken)  # its end is to be recorded, by its owner alone
    assert inbox.claim() == []
    assert not inbox.finished
    inbox.fail(taken, "the disk is gone")
    assert inbox.finished
    assert (inbox.failed, stops) == ("the file is gone", ["the file is gone"])
