"""What an operation depends on: the registry, the policy, the clock and the log, at one moment."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from signer.clock import ClockReading
from signer.config.policy_documents import PolicyText
from signer.errors import CallError, OperatorError, Reason
from signer.keys.registry import RegistryState
from signer.keys.wrapping_use import newest_wrapping_key
from signer.model import KeyName, KeyVersion, parse_key_or_version
from signer.officers.permits import seen_at
from signer.officers.standing import TIMES
from signer.text import utc as utc_text


class OperationError(OperatorError):
    """Why an operation is not possible: everything that is wrong with it, a text each."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        super().__init__("; ".join(texts))

    def answer(self) -> CallError:
        return CallError(Reason.OPERATION_REFUSED, "; ".join(self.texts[:10]))


@dataclass(frozen=True, slots=True)
class OperationContext:
    """All that operations depend on, at one moment.

    ``state`` is that of the registry under the officers and the policy that are accounted for,
    ``stored`` is as the registry has it: the last transaction compares with that.
    ``executing`` is the id of the operation at work, empty while it is only proposed: keys that
    it made in an earlier attempt do not count as conflicts. ``draft`` reads the policy in the
    files, ``read_policy`` the text of a policy; both raise ConfigError. ``document`` returns
    what is stored under a SHA-256. ``needed`` is the number of officers that each kind needs.
    ``clock`` has the time of the machine, ``record_time`` returns that of a record of the log, in
    microseconds since the epoch; it raises LookupError. ``clock_confirmed`` is the number of the
    record with which officers have confirmed the clock last, 0 if they have not.
    ``changed_by`` returns whether the log has a change of keys by an operation with these bytes;
    ``unaccounted`` names the versions and wrapping keys that the registry has otherwise than the
    log. ``wrapped_since`` returns since when operations can be proposed that wrap the key of a
    version anew, in seconds since the epoch.
    ``files_problem`` returns why the policy's files on this appliance would not be written if
    the policy changed now, "" if they would.
    ``attachment`` is the file that an officer sent with a proposal.
    """

    now: float
    state: RegistryState
    stored: RegistryState
    policy: PolicyText
    tokens: tuple[str, ...]
    needed: Mapping[str, int]
    draft: Callable[[], PolicyText]
    read_policy: Callable[[bytes], PolicyText]
    document: Callable[[str], bytes | None]
    clock: ClockReading
    record_time: Callable[[int], int]
    clock_confirmed: int
    changed_by: Callable[[str, bytes], bool]
    unaccounted: AbstractSet[str]
    wrapped_since: Callable[[KeyVersion], int]
    files_problem: Callable[[], str]
    policy_folder: bool = True
    executing: str = ""
    attachment: bytes = b""

    def version(self, name: str) -> KeyVersion:
        """Returns a version by its name; raises OperationError."""
        key, number = _parsed(name)
        version = None if number is None else self.state.keys.version(key, number)
        if number is None:
            raise OperationError(
                f"{name} is a key: name one version of it, as in {name}/versions/1"
            )
        if version is None:
            raise OperationError(f"{name} does not exist")
        self._check_accounted([version])
        return version

    def _check_accounted(self, versions: Iterable[KeyVersion]) -> None:
        """Raises OperationError for versions that somebody has changed by hand."""
        if wrong := [version.name for version in versions if version.name in self.unaccounted]:
            raise OperationError(
                f"{', '.join(wrong)}: the registry has something else of it than the audit log"
                " accounts for: put its row back first"
            )

    def key(self, name: str) -> KeyName:
        """Parses the name of a key; raises OperationError."""
        key, number = _parsed(name)
        if number is not None:
            raise OperationError(f"{name} is a version: name the key, {key}")
        return key

    def token(self, label: str) -> str:
        """Returns the token to use, the only one if ``label`` is empty; raises OperationError."""
        if not label and len(self.tokens) == 1:
            return self.tokens[0]
        if label not in self.tokens:
            raise OperationError(*self.token_problems(label))
        return label

    def token_problems(self, label: str) -> list[str]:
        """Returns why an operation cannot use a token by this label."""
        if label in self.tokens:
            return []
        return [f"token: name one of the tokens {', '.join(self.tokens)}"]

    def wrapping_key(self, token: str) -> str:
        """Returns the id of the newest wrapping key on a token, empty if there is none."""
        return newest_wrapping_key(self.state.wrapping_keys, token)

    def basis(self, key: KeyName) -> dict[str, str]:
        """Returns state and times of every version of a key, as officers see them.

        The revision that wrote a version last is included: a version that changed and changed
        back is not the one that they saw.
        """
        versions = self.state.keys.versions(key)
        self._check_accounted(versions)
        return {version.name: self._seen(version) for version in versions}

    def _seen(self, version: KeyVersion) -> str:
        times = [(name, getattr(version, name)) for name in TIMES]
        known = [f"{name} {utc(time)}" for name, time in times if time is not None]
        state, revision = str(version.state_at(self.now)), version.revision
        return ", ".join([state, *known, seen_at(revision)])


def utc(time: float | None) -> str:
    """Returns a time as text in UTC, "none" without one."""
    return "none" if time is None else utc_text(time)


def _parsed(name: str) -> tuple[KeyName, int | None]:
    try:
        return parse_key_or_version(name)
    except ValueError as error:
        raise OperationError(f"{name[:300]}: {error}") from None


def basis_problems(basis: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns which versions have changed since officers saw them: ``basis`` is what they saw."""
    if now == dict(basis):
        return []
    names = sorted(name for name in {*now, *basis} if now.get(name) != basis.get(name))
    changed = ", ".join(
        f"{n}: {basis.get(n, 'absent')} then, {now.get(n, 'gone')} now" for n in names
    )
    return [f"what officers saw has changed since this was proposed ({changed}): propose it again"]
