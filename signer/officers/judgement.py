"""What is known before the registry is judged, and the result of that: values only."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from signer.keys.registry import RegistryState
from signer.keys.rows import UnreadableRow
from signer.model import KeyName, KeyVersion, Placement
from signer.officers.keys_record import KeysRecord
from signer.officers.records import OfficersRecord, PolicyRecord
from signer.officers.standing import Standing
from signer.officers.wrapped import WrappedStanding
from signer.officers.wrapping_standing import WrappingChanges, WrappingPlaces

VersionName = tuple[KeyName, int]


@dataclass(frozen=True, slots=True)
class Known:
    """What is accounted for so far.

    ``state`` is served; its deployment is the log's. ``standing`` returns that of a version,
    None if it is not known, ``placed`` its placements beside the one where it was made;
    ``wrapped`` what is known of its wrapped key; ``pinned`` whether another version than the one
    of this name has a public key, by its hash. ``wrapping`` is where wrapping keys are used, None
    if what the registry has of that is taken as given. ``unaccounted`` names the versions that are
    not served. ``used`` says whether the log has a change by an operation, ``failed`` whether it
    has failed and not begun again, ``checked`` whether the log has found these very bytes approved.
    ``needed`` is the number of officers that each kind of operation needs. What had been done at
    ``looked``, in seconds since the epoch, is accounted for. ``policy_free``: the policy needs no
    approval. ``document`` returns what is stored under a SHA-256. ``recorded`` is the revision of
    the newest record of keys. A revision of -1 is not known.
    """

    state: RegistryState
    standing: Callable[[VersionName], Standing | None]
    placed: Callable[[KeyVersion], Collection[Placement]]
    wrapped: Callable[[KeyVersion], WrappedStanding | None]
    wrapping: WrappingPlaces | None
    pinned: Callable[[str, bytes], bool]
    unaccounted: Collection[VersionName]
    used: Callable[[str], bool]
    failed: Callable[[str], bool]
    checked: Callable[[str, bytes], bool]
    policy_free: bool
    document: Callable[[str], bytes | None]
    needed: Mapping[str, int]
    looked: float = 0.0
    recorded: int = 0


@dataclass(slots=True)
class Judgement:
    """The result of judging another state of the registry.

    ``state`` may be served. ``records`` belong into the log before it is, in this order.
    ``refused`` says what is not served, ``by_hand`` which stops nobody accounts for.
    ``unaccounted`` are the versions that are not served, with what is known of each: one that was
    known before is suspended in ``state``, a new one is left out. ``wrapped`` has what is known of
    their wrapped keys, ``wrapping`` what has become of wrapping keys. ``unreadable`` are rows that
    cannot be read: what they are about is not served either.
    """

    state: RegistryState
    records: list[OfficersRecord | PolicyRecord | KeysRecord] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    unaccounted: dict[VersionName, Standing | None] = field(default_factory=dict)
    wrapped: dict[VersionName, WrappedStanding | None] = field(default_factory=dict)
    wrapping: WrappingChanges = field(default_factory=lambda: WrappingChanges({}))
    unreadable: Sequence[UnreadableRow] = ()
