"""Whether the queue of a token takes a job now: by its room, and by the time that is left.

docs/adr/0037 says why. For the event loop.
"""

from signer.clock import Clock
from signer.errors import CallError, Reason
from signer.hsm.front.chunks import SignJob, kind_of
from signer.hsm.front.dispatcher import Dispatcher
from signer.text import count

_AHEAD = 2.0
"""How often what is ahead of a batch counts: as much work of others arrives while the batch waits.
If it counted once, under overload every admitted batch would wait until its deadline, and most
would be late."""
_SHORTEST_HINT = 0.05  # seconds: a refused caller does not come back at once


class AdmissionCheck:
    """Refuses what would not be signed in time."""

    def __init__(self, dispatcher: Dispatcher, max_queued: int, clock: Clock) -> None:
        """``max_queued``: the items that may wait, beyond which owners get their shares."""
        self._dispatcher, self._scheduler = dispatcher, dispatcher.scheduler
        self._max_queued = max_queued
        self._now = clock.monotonic

    def check_room(self, job: SignJob) -> None:
        """Refuses a job for which the queue has no room.

        One passes where nothing waits, or it never could; so does one within its owner's share,
        so that others who fill the queue do not keep it out, until twice as many items wait.
        """
        scheduler, items, most = self._scheduler, len(job.inputs), self._max_queued
        waiting = scheduler.admitted
        over = waiting + items - most
        if not waiting or over <= 0:
            return
        # Shares shrink as owners come, and those before keep what they have: without an end to
        # it, many owners would have many times the queue.
        within = scheduler.admitted_of(job.owner) + items <= scheduler.share(job.owner, most)
        if within and over <= most:
            return
        raise CallError(
            Reason.OVERLOADED,
            f"{count(waiting, 'item waits', 'items wait')} already: try again a little later",
            {"limit": "queued_items"},
            retry_after=max(self.ahead() * over / waiting, _SHORTEST_HINT),
        )

    def check_time(self, job: SignJob, size: int) -> None:
        """Refuses a job if what is ahead of it takes too long for its deadline.

        Where nothing is ahead, an estimate alone refuses nothing: it may be wrong, and only
        signing corrects it.
        """
        left = job.deadline - self._now()
        if left <= 0:
            raise CallError(Reason.DEADLINE_TOO_SHORT, "no time is left to sign: allow more time")
        scheduler, dispatcher = self._scheduler, self._dispatcher
        seconds = dispatcher.costs.measured(kind_of(job.version)).of(len(job.inputs), size)
        ahead = scheduler.backlog() if scheduler.admitted and seconds else 0.0
        if not ahead:
            return
        ahead += dispatcher.in_flight()
        if seconds + _AHEAD * ahead <= left * dispatcher.pace.value:
            return  # one worker would be enough
        before = scheduler.finish(job.owner, job.weight, seconds) - seconds
        before += dispatcher.in_flight()
        # That much less must be ahead, and the workers sign it in as many seconds.
        alone = seconds / self.workers()
        late = (alone + _AHEAD * before / self.workers() - left) / _AHEAD
        if late > 0:
            what = (
                f"what waits already takes {late:.3f} s too long for the deadline: try again later"
            )
            if alone > left:
                what = f"these items alone take about {alone:.3f} s: send smaller batches"
            message = f"{what} or allow more time"
            raise CallError(Reason.OVERLOADED, message, retry_after=max(late, _SHORTEST_HINT))

    def ahead(self) -> float:
        """Returns the seconds until the workers have done what waits and is admitted, about."""
        seconds = self._scheduler.backlog() + self._dispatcher.in_flight() / 2
        return seconds / self.workers()

    def workers(self) -> float:
        """Returns how many seconds of work the workers do in a second."""
        return max(1, self._dispatcher.serving) * self._dispatcher.pace.value
