"""Which policy is in force: the one in the files, or the one that officers have approved.

The files decide only before the first officers are appointed, and in development. Otherwise the
registry names the policy in force, and the files are a copy of it or a draft of the next one.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from signer.config.policy_documents import PolicyText, read_policy, read_policy_text
from signer.config.policy_files import policy_sha256, write_policy_files
from signer.errors import ConfigError, OperatorError, Violation
from signer.events import Events, PolicyFilesDiffer
from signer.keys.registry import Registry, RegistryState
from signer.policy.rules import Policy

MOST_KEPT = 4
"""Parsed policies besides the one in force."""
KEPT_BYTES = 1024 * 1024
"""What their texts may have together: a parsed policy takes some 20 times its text in memory.
The one that was used last is kept whatever its size."""


class ParsedPolicies:
    """The parsed policies that were used last, by their SHA-256."""

    def __init__(self) -> None:
        self._by_hash: OrderedDict[str, PolicyText] = OrderedDict()

    def get(self, sha256: str) -> PolicyText | None:
        """Returns a policy, which counts as used now, or None."""
        if (known := self._by_hash.get(sha256)) is not None:
            self._by_hash.move_to_end(sha256)
        return known

    def keep(self, text: PolicyText) -> PolicyText:
        """Keeps a policy, instead of those that have not been used for the longest time."""
        kept = self._by_hash
        kept[text.policy.sha256] = text
        kept.move_to_end(text.policy.sha256)
        size = sum(len(each.text) for each in kept.values())
        while len(kept) > 1 and (len(kept) > MOST_KEPT or size > KEPT_BYTES):
            size -= len(kept.popitem(last=False)[1].text)
        return text


REPLACE_DRAFT = (
    "propose it with `signer policy propose`, or replace it by the policy in force with"
    " `signer policy export --in-force DIR`"
)


class PolicyInForce:
    """The policy in force, ``text``, and what the files hold.

    Only ``Serving`` replaces ``text``. ``folder`` is a file or a folder.
    """

    def __init__(
        self,
        folder: Path,
        registry: Registry,
        state: RegistryState,
        events: Events,
        *,
        kept: Callable[[str], bytes | None],
        development: bool,
    ) -> None:
        """Reads the policy in force at the start; one from the files is put into the registry.

        ``state`` is what is accounted for; ``kept`` returns the text that the log has kept of a
        policy, by its SHA-256. Raises ConfigError and OperatorError.
        """
        self.folder = folder
        self._registry, self._events, self._kept = registry, events, kept
        self._development = development
        self._parsed = ParsedPolicies()
        self.text = (
            read_policy(folder)
            if self.files_decide(state)
            else self._stored(state, read_policy_text)
        )
        self._check_clients(self.text.policy, state)
        if state.policy != self.text.policy.sha256:
            with registry.writing() as write:
                write.put_policy(self.text.text)

    def files_decide(self, state: RegistryState) -> bool:
        """Returns whether the files are in force as they are, without an approval."""
        return self._development or not state.officers

    def of(self, state: RegistryState) -> PolicyText:
        """Returns the policy that a state puts in force; raises OperatorError if it has no text."""
        if state.policy in (None, self.text.policy.sha256):
            return self.text
        return self._stored(state, self.parse)

    def write_files(self, before: PolicyText) -> None:
        """Writes the policy in force into the files if they hold ``before``, not a draft."""
        try:
            written = policy_sha256(self.folder)
            if written == before.policy.sha256:
                write_policy_files(self.folder, self.text.text)
            elif written != self.text.policy.sha256:
                text = f"{self.folder} holds a draft, {written}, and was left alone; in force is"
                text = f"{text} {self.text.policy.sha256}: {REPLACE_DRAFT}"
                self._events.emit(PolicyFilesDiffer(text))
        except (ConfigError, OSError, ValueError) as error:
            self._events.emit(PolicyFilesDiffer(str(error)))

    def files_problem(self) -> str:
        """Returns why the files would not be written if the policy changed now; "" if they would.

        They are a copy of the policy in force only as long as they held the one before it.
        """
        try:
            held = policy_sha256(self.folder)
        except ConfigError as error:
            return " ".join(str(error).split())
        if held != self.text.policy.sha256:
            return (
                f"{self.folder} holds a draft, {held}, and not the policy in force,"
                f" {self.text.policy.sha256}: {REPLACE_DRAFT}"
            )
        folder = self.folder if self.folder.is_dir() else self.folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"{folder} cannot be written by the daemon: change its owner or its mode"
        return ""

    def draft(self, state: RegistryState) -> PolicyText | None:
        """Returns what the files hold, None if that is the policy in force. Raises ConfigError.

        Where officers decide, any other policy in the files is refused.
        """
        draft = self.in_files()
        if draft.policy.sha256 == self.text.policy.sha256:
            return None
        if not self.files_decide(state):
            raise self.refusal(
                f"the files hold {draft.policy.sha256}, a draft that no approved operation puts"
                f" in force: {REPLACE_DRAFT}; {self.text.policy.sha256} stays in force"
            )
        self._check_clients(draft.policy, state)
        return draft

    def begin_files(self, state: RegistryState) -> None:
        """Reports files that hold a draft, or no valid policy.

        Those of a policy that was in force before are written: a crash can have come in between
        the policy's coming into force and its files. No draft is lost; the log keeps that policy.
        """
        try:
            held = policy_sha256(self.folder)
            outdated = held != self.text.policy.sha256 and self._kept(held) is not None
            if outdated and not self.files_decide(state):
                write_policy_files(self.folder, self.text.text)
            self.draft(state)
        except (ConfigError, OSError, ValueError) as error:
            self._events.emit(PolicyFilesDiffer(str(error)))

    def refusal(self, *texts: str) -> ConfigError:
        """Returns the error that refuses the policy in the files."""
        return ConfigError(str(self.folder), [Violation("policy", text) for text in texts])

    def parse(self, content: bytes) -> PolicyText:
        """Reads a policy's text, each once: 15,000 facilities take seconds. Raises ConfigError."""
        known = self._known(hashlib.sha256(content).hexdigest())
        return self._parsed.keep(read_policy_text(content)) if known is None else known

    def parse_early(self, sha256: str | None) -> None:
        """Reads the policy that comes into force next, before a call needs it."""
        if sha256 is None or self._known(sha256) is not None:
            return
        with suppress(OperatorError, ConfigError, ValueError):  # reported when it is put in force
            content = self._registry.document(sha256)
            if content is not None:
                self.parse(content)

    def in_files(self) -> PolicyText:
        """Reads the files, each content once. Raises ConfigError."""
        known = self._known(policy_sha256(self.folder))
        return self._parsed.keep(read_policy(self.folder)) if known is None else known

    def _known(self, sha256: str) -> PolicyText | None:
        """Returns a policy that is parsed already."""
        return self.text if self.text.policy.sha256 == sha256 else self._parsed.get(sha256)

    def _stored(self, state: RegistryState, parse: Callable[[bytes], PolicyText]) -> PolicyText:
        # First where the log keeps it, which SQL cannot change.
        sha256 = state.policy or ""
        content = self._kept(sha256) or self._registry.document(sha256)
        if content is None:
            raise OperatorError(
                "the registry does not hold the policy in force: put it back from the backup"
            )
        try:
            return parse(content)
        except ValueError as error:
            raise OperatorError(f"the policy in force cannot be read: {error}") from error

    def _check_clients(self, policy: Policy, state: RegistryState) -> None:
        if problems := policy.officer_problems(state.officers):
            raise self.refusal(*problems)
