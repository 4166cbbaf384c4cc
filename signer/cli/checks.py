"""``signer check`` and ``doctor``: whether files are correct, and a machine is fit to sign."""

import sys
from pathlib import Path

import click

from signer.cli.options import config_option, json_option
from signer.cli.output import output, print_json, print_table, say
from signer.clock import SystemClock
from signer.config.models import Config, load_config
from signer.config.policy_documents import load_policy
from signer.daemon.draft import FilesState, files_state
from signer.errors import ConfigError
from signer.policy.rules import Policy
from signer.text import count
from signer.tools.doctor import examine, worst
from signer.tools.doctor.file_checks import file_problems
from signer.tools.doctor.finding import Finding, Level
from signer.tools.doctor.timestamping import timestamp_problems
from signer.tools.doctor.tls_certificates import tls_problems


@click.command()
@config_option
@json_option
def check(*, config_file: Path, as_json: bool) -> None:
    """Checks the configuration, the policy and the files they name.

    Nothing is started, no token is used, no PIN is read: `signer doctor` examines
    these, the registry and the audit log, before a start. All problems are reported
    at once, with their dotted paths; the exit code is then 1.

    \b
    Before a reload:
      signer check --config /etc/signer/signer.yaml \\
        && signer reload --config /etc/signer/signer.yaml
    For programs:
      signer check --config /etc/signer/signer.yaml --json | jq '.problems[].path'
    """
    policy = known = None
    errors = []
    now = SystemClock().now()
    try:
        config = load_config(config_file)
        wrong = list(file_problems(config))
        if not any(problem.field.startswith("tls.") for problem in wrong):
            wrong += tls_problems(config.tls, now)
        if wrong:
            errors.append(ConfigError(str(config_file), wrong))
        policy = load_policy(config.policy)
        if unfit := timestamp_problems(config, policy, now):
            errors.append(ConfigError(str(config_file), unfit))
        known = files_state(config, policy.sha256)
    except ConfigError as error:
        errors.append(error)
    if as_json:
        problems = [
            {"file": found.source, "path": problem.field, "problem": problem.description}
            for found in errors
            for problem in found.problems
        ]
        described = {
            "ok": not errors,
            "policy_sha256": policy and policy.sha256,
            "policy_in_force": known and known.in_force,
            "facilities": policy and len(policy.facilities),
            "problems": problems,
        }
        print_json(described)
    elif policy is not None and known is not None and not errors:
        _print_checked(config_file, config, policy, known)
    else:
        say("\n".join(map(str, errors)), err=True)
    if errors:
        sys.exit(1)


def _print_checked(file: Path, config: Config, policy: Policy, known: FilesState) -> None:
    facilities = count(len(policy.facilities), "facility", "facilities")
    tokens = (f"{token.label} ({count(token.workers, 'worker')})" for token in config.tokens)
    say(f"{file} is in order")
    say(f"  policy  {facilities}, {count(len(policy.groups), 'group')}")
    say(f"  sha256  {policy.sha256}")
    say(f"  which   is {known}" if not known.problem else f"  which   {known}")
    say(f"  tokens  {', '.join(tokens)}")
    say(f"  stop    takes at most {config.limits.stop_seconds:.0f} s")
    say("  files   all exist, are readable, and private where they must be")
    say("  tls     certificate, key and client CA fit, and have not ended")
    say("  beside  signer doctor examines tokens, PINs, registry and audit log")


def _print_findings(findings: list[Finding]) -> None:
    rows = [[found.level, found.check, found.seen, found.remedy] for found in findings]
    if not sys.stdout.isatty():
        # Labels and paths may contain any character, and the reader may know only ASCII.
        rows = [[str(c).encode("ascii", "backslashreplace").decode() for c in row] for row in rows]
    print_table(["level", "check", "state", "what to do"], rows)
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    warnings = count(counts[Level.WARNING], "warning")
    say(f"{counts[Level.WRONG]} wrong, {warnings}, {counts[Level.OK]} ok")


@click.command()
@config_option
@output(
    lambda findings: {
        "level": worst(findings),
        "findings": [finding._asdict() for finding in findings],
    },
    _print_findings,
    ok=lambda findings: worst(findings) is not Level.WRONG,
)
def doctor(*, config_file: Path) -> list[Finding]:
    """Examines the machine: module, token, files, certificates, registry, disk, clock, ports.

    Run it before `signer init`, before and after an upgrade, and when something is
    wrong, also while the daemon runs. No PIN is tried and nothing is changed. Run it as
    the user of the daemon. The exit code is 1 if something is wrong; warnings leave it 0.

    \b
      signer doctor --config /etc/signer/signer.yaml
    For programs:
      signer doctor --config /etc/signer/signer.yaml --json \\
        | jq '.findings[] | select(.level != "ok")'
    """
    return examine(config_file, SystemClock().now())
