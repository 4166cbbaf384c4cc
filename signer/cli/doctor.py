"""``signer doctor``: whether a machine is fit to sign, and what to fix."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from signer.cli.options import config_option
from signer.cli.output import output, print_table
from signer.clock import SystemClock
from signer.tools.doctor import examine, worst
from signer.tools.doctor.finding import Finding, Level


def _print(findings: list[Finding]) -> None:
    rows = [[found.level, found.check, found.seen, found.remedy] for found in findings]
    if not sys.stdout.isatty():
        # Labels and paths may contain any character, and the reader may know only ASCII.
        rows = [[str(c).encode("ascii", "backslashreplace").decode() for c in row] for row in rows]
    print_table(["", "check", "state", "what to do"], rows)
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    click.echo(", ".join(f"{counts[level]} {level}" for level in reversed(Level)))


@click.command()
@config_option
@output(
    lambda findings: {
        "level": worst(findings),
        "findings": [finding._asdict() for finding in findings],
    },
    _print,
    ok=lambda findings: worst(findings) is not Level.WRONG,
)
def doctor(*, config_file: Path) -> list[Finding]:
    """Examines the machine: module, token, files, certificates, registry, disk, clock, ports.

    Run it before `signer init`, before and after an upgrade, and in trouble; the daemon may
    run. No PIN is tried and nothing is changed. Run it as the user of the daemon.
    The exit code is 1 where something is wrong; warnings leave it 0.

    \b
      signer doctor --config /etc/signer/signer.yaml
    For programs:
      signer doctor --config /etc/signer/signer.yaml --json | jq '.findings[] | select(.level != "ok")'
    """  # noqa: E501  a command is one line
    return examine(config_file, SystemClock().now())
