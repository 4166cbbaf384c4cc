import threading
from collections.abc import Callable

import pytest

from signer.audit.format.record import RecordKind
from signer.audit.write.log import AuditLate, AuditUnavailable, Entry, Inbox


def an_inbox(on_stop: Callable[[str], None] = lambda _: None) -> Inbox:
    return Inbox(on_stop)


def put(inbox: Inbox, kind: RecordKind = RecordKind.INTENT) -> Entry:
    entry = Entry(kind, {})
    inbox.put(entry)
    return entry


def written(inbox: Inbox, entries: list[Entry], first: int = 0) -> None:
    """What the writer does once the records are durable."""
    for seq, entry in enumerate(entries, first):
        entry.seq = seq
    inbox.answer(entries)


def test_who_waits_gets_the_number_of_his_record() -> None:
    inbox = an_inbox()
    entries = [put(inbox), put(inbox, RecordKind.TOKEN)]
    assert inbox.take() == entries
    written(inbox, entries, 7)
    assert [inbox.wait(entry, None) for entry in entries] == [7, 8]


def test_a_late_intent_that_waits_is_taken_back() -> None:
    inbox = an_inbox()
    late, other = put(inbox), put(inbox)
    with pytest.raises(AuditLate):
        inbox.wait(late, 0)
    assert inbox.take() == [other]


def test_a_late_intent_that_is_being_written_is_closed_before_all_that_came_since() -> None:
    inbox = an_inbox()
    late = put(inbox)
    taken = inbox.take()
    with pytest.raises(AuditLate):
        inbox.wait(late, 0)
    again = put(inbox)  # its caller asks again, under the same request id
    written(inbox, taken, 5)
    closing, last = inbox.take()
    assert (closing.kind, closing.fields["intent"]) == (RecordKind.INDETERMINATE, 5)
    assert closing.fields["reason"] == "DEADLINE_TOO_SHORT"
    assert last is again


def test_an_intent_that_is_durable_at_its_deadline_is_not_late() -> None:
    inbox = an_inbox()
    entry = put(inbox)
    inbox.take()
    entry.seq = 3  # durable, but its caller was not woken yet
    assert inbox.wait(entry, 0) == 3
    inbox.answer([entry])
    inbox.close()
    assert inbox.take() == []


def test_an_intent_that_fails_late_is_not_closed() -> None:
    inbox = an_inbox()
    late = put(inbox)
    taken = inbox.take()
    with pytest.raises(AuditLate):
        inbox.wait(late, 0)
    inbox.fail(taken, "the disk is gone")
    assert isinstance(late.error, AuditUnavailable)


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
        except AuditUnavailable:
            refused.append(list(heard))

    def on_stop(why: str) -> None:
        # Callers find out by themselves that it is over, but are not told so yet.
        assert why in {inbox.failed, inbox.low}
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


def test_who_waits_is_refused_even_where_nobody_can_be_told() -> None:
    def on_stop(_: str) -> None:
        raise BrokenPipeError

    inbox = an_inbox(on_stop)
    waiting = put(inbox)
    with pytest.raises(BrokenPipeError):
        inbox.fail([], "the disk is gone")
    with pytest.raises(AuditUnavailable, match="the disk is gone"):
        inbox.wait(waiting, None)


def test_a_low_disk_takes_all_but_intents() -> None:
    inbox = an_inbox()
    inbox.stop_intents("low")
    with pytest.raises(AuditUnavailable, match="low"):
        put(inbox)
    outcome = put(inbox, RecordKind.OUTCOME)
    assert inbox.take() == [outcome]


def test_a_closed_inbox_gives_out_what_it_has() -> None:
    inbox = an_inbox()
    entry = put(inbox)
    inbox.close()
    with pytest.raises(AuditUnavailable, match="closed"):
        put(inbox)
    assert inbox.take() == [entry]
    assert inbox.take() == []
