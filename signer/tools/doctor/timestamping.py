"""The time-stamp port: the policy lets its principal make time-stamps with its key."""

from collections.abc import Iterator

from signer.config.models import Config
from signer.errors import Reason, Violation
from signer.model import Format, KeyName
from signer.policy.decide import decide
from signer.policy.rules import Policy
from signer.tools.doctor.finding import Finding, ok, wrong


def timestamp_problems(config: Config, policy: Policy, now: float) -> list[Violation]:
    """Returns why the policy lets the time-stamp port make none, none where it does.

    Outside of opening hours it makes none for a while, which is as it should be.
    """
    if (port := config.timestamps) is None:
        return []
    decision = decide(policy, port.principal, KeyName.parse(port.key), Format.TIMESTAMP, now)
    if decision.reason is Reason.PEER_UNKNOWN:
        text = f"no rule of the policy names {port.principal}: correct it, or name it as a client"
        return [Violation("timestamps.principal", text)]
    if decision.reason is Reason.POLICY_DENIED:
        text = f"the policy lets {port.principal} make no time-stamp with {port.key}"
        return [Violation("timestamps.key", f"{text}: {decision.message} ({decision.rule})")]
    return []


def examine_timestamps(config: Config, policy: Policy, now: float) -> Iterator[Finding]:
    """Judges the same, where there is a time-stamp port."""
    if config.timestamps is None:
        return
    for problem in timestamp_problems(config, policy, now):
        yield wrong(problem.field, problem.description, "correct signer.yaml, or the policy")
        return
    yield ok("timestamps", f"the policy allows {config.timestamps.principal} what the port needs")
