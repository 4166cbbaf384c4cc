"""The kind policy: another policy in force, by its hash."""

from __future__ import annotations

from typing import Protocol

from signer.config.policy_documents import PolicyText
from signer.errors import ConfigError
from signer.officers.kinds.base import Details, Effects, Kind, Problems, Work, World
from signer.policy.difference import difference
from signer.policy.officers import officer_problems


class PutPolicy(Details):
    """The SHA-256 of a policy's text and of the one that it replaces, in force since a revision."""

    policy_sha256: str = ""
    replaces: str = ""
    in_force_since: int = 0


class PutPolicyKind(Kind[PutPolicy]):
    """Puts the policy that lies in the appliance's files in force."""

    name = "policy"
    details = PutPolicy
    names = "policy_sha256"

    def complete(self, details: PutPolicy, world: World, attachment: bytes) -> PutPolicy:
        del attachment
        draft = drafted(world)
        if details.policy_sha256 not in ("", draft.policy.sha256):
            raise Problems(
                f"policy_sha256: the appliance's files hold {draft.policy.sha256}: put the policy"
                " that you mean there"
            )
        return PutPolicy(
            policy_sha256=draft.policy.sha256,
            replaces=world.policy.policy.sha256,
            in_force_since=world.state.policy_since,
        )

    def problems(self, details: PutPolicy, world: World) -> list[str]:
        problems = replaced_problems(details, world)
        if details.policy_sha256 == world.policy.policy.sha256:
            problems.append("this policy is in force already: change the files first")
        policy = self._text(details, world).policy
        return problems + officer_problems(policy, world.state.officers)

    def documents(self, details: PutPolicy, world: World, attachment: bytes) -> list[bytes]:
        super().documents(details, world, attachment)
        return [self._text(details, world).text]

    def difference(self, details: PutPolicy, world: World) -> list[str]:
        lines = difference(world.policy.policy, self._text(details, world).policy)
        if gone := sum(line.startswith("- facility ") for line in lines):
            lines.insert(0, f"! it removes {gone} facilities")
        return lines or ["  what the rules come to is the same"]

    def execute(self, details: PutPolicy, work: Work) -> Effects:
        text = self._text(details, work.world).text
        return Effects(
            policy=text,
            policy_since=details.in_force_since,
            officers_since=work.world.state.officers_since,
            result={"policy_sha256": details.policy_sha256},
        )

    def _text(self, details: PutPolicy, world: World) -> PolicyText:
        """The policy meant: kept since the proposal, or before that the one in the files."""
        kept = world.document(details.policy_sha256)
        try:
            found = drafted(world) if kept is None else world.read_policy(kept)
        except (ConfigError, ValueError) as error:
            raise Problems(f"{details.policy_sha256} is no policy here: {error}") from None
        if found.policy.sha256 != details.policy_sha256:
            raise Problems(f"the policy {details.policy_sha256} is neither kept nor in the files")
        return found


def drafted(world: World) -> PolicyText:
    """Reads the policy in the appliance's files; raises Problems."""
    try:
        return world.draft()
    except ConfigError as error:
        raise Problems(*str(error).splitlines()) from None


class Replacing(Protocol):
    """Details of what puts a policy in the place of another."""

    @property
    def replaces(self) -> str: ...
    @property
    def in_force_since(self) -> int: ...


def replaced_problems(details: Replacing, world: World) -> list[str]:
    """Returns why a change of the policy no longer is the one that officers saw."""
    seen = (details.replaces, details.in_force_since)
    if seen == (world.policy.policy.sha256, world.state.policy_since):
        return []
    return ["another policy was put in force since this was proposed: propose it again"]
