"""Examines a machine for ``signer doctor``: what is found, and what to do about it.

The checks are independent of each other. Nothing is changed, no PIN is tried, and the daemon
may be running. A test file is written to the folder of the log and removed.
"""

from collections.abc import Iterator
from pathlib import Path

from signer.audit.format.segments import list_segments
from signer.config.models import Config, load_config
from signer.config.policy_documents import load_policy
from signer.daemon.draft import files_state
from signer.daemon.policy_in_force import REPLACE_DRAFT
from signer.errors import ConfigError
from signer.keys.wrapping_use import wrapping_uses
from signer.model import Storage
from signer.policy.rules import Policy
from signer.text import count
from signer.tools.doctor.file_checks import examine_files
from signer.tools.doctor.finding import Finding, Level, ok, refused, warning
from signer.tools.doctor.machine import (
    examine_daemon,
    examine_lifetimes,
    examine_limits,
    examine_ports,
    judge_clock,
    running_daemon,
    synchronised,
)
from signer.tools.doctor.storage import (
    examine_audit,
    examine_registry,
    judge_officers,
    judge_wrapping,
    last_record_time,
)
from signer.tools.doctor.timestamping import examine_timestamps
from signer.tools.doctor.tls_certificates import examine_client, examine_tls
from signer.tools.doctor.tokens import examine_token


def examine(config_file: Path, now: float) -> list[Finding]:
    """Returns the findings of all checks; ``now`` is seconds since the epoch."""
    try:
        config = load_config(config_file)
    except ConfigError as error:
        return [refused("configuration", error)]
    return [ok("configuration", f"{config_file} is in order"), *_examined(config, now)]


def worst(findings: list[Finding]) -> Level:
    """Returns the worst level of the findings."""
    levels = {each.level for each in findings}
    return next((each for each in (Level.WRONG, Level.WARNING) if each in levels), Level.OK)


def _examined(config: Config, now: float) -> Iterator[Finding]:
    finding, policy = _policy(config)
    yield finding
    files = list(examine_files(config))
    yield from files
    bad = {each.check for each in files if each.level is Level.WRONG}
    if not any(check.startswith("tls.") for check in bad):
        yield from examine_tls(config.tls, now)
    if "client" not in bad:
        yield from examine_client(config.client, now)
    if policy is not None:
        yield from examine_timestamps(config, policy, now)
    for index, token in enumerate(config.tokens):
        if f"tokens[{index}].module" not in bad:
            yield from examine_token(token, config.state)
    audit = config.audit.directory
    registry, state = examine_registry(config.registry, begun=bool(list_segments(audit)))
    yield registry
    if state is not None and state.officers:
        yield judge_officers(state.officers, max(config.operations.all_needed().values()), now)
        tokens = [token.label for token in config.tokens]
        uses = wrapping_uses(state.wrapping_keys, state.keys)
        yield from judge_wrapping(uses, tokens, stores=policy is not None and _wraps(policy))
    yield from examine_audit(config.audit, officers=registry.level is Level.OK)
    yield judge_clock(now, last_record_time(audit), synchronised())
    daemon = running_daemon(audit)
    yield examine_daemon(daemon, config.metrics)
    yield from examine_lifetimes(daemon, config.metrics)
    yield from examine_ports(config, daemon)
    yield from examine_limits(daemon)


def _policy(config: Config) -> tuple[Finding, Policy | None]:
    try:
        policy = load_policy(config.policy)
    except ConfigError as error:
        return refused("policy", error), None
    seen = f"{count(len(policy.facilities), 'facility', 'facilities')}, sha256 {policy.sha256}"
    known = files_state(config, policy.sha256)
    if known.is_draft:
        return warning("policy", f"{seen}: {known}", REPLACE_DRAFT), policy
    return ok("policy", seen if known.problem else f"{seen}: {known}"), policy


def _wraps(policy: Policy) -> bool:
    """Returns whether a policy has keys that are stored wrapped."""
    every = (terms for f in policy.facilities.values() for terms in (f.terms, *f.keys.values()))
    return any(terms.storage == Storage.WRAPPED for terms in every)
