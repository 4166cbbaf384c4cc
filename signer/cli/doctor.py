"""``signer doctor``: whether a machine is fit to sign, and what to mend."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from signer.cli.options import config_option, json_option

if TYPE_CHECKING:
    from signer.tools.doctor.finding import Finding


@click.command()
@config_option
@json_option
def doctor(*, config_file: Path, as_json: bool) -> None:
    """Examines the machine: module, token, files, certificates, registry, disk, clock, ports.

    Before `signer init`, before and after an upgrade, and when something is wrong; the
    daemon may run. No PIN is tried and nothing is changed. Run it as the user of the daemon.
    The exit code is 1 where something is wrong; warnings leave it 0.

    \b
      signer doctor --config /etc/signer/signer.yaml
    For programs:
      signer doctor --config /etc/signer/signer.yaml --json | jq '.findings[] | select(.level != "ok")'
    """  # noqa: E501  a command is one line
    from signer.clock import SystemClock
    from signer.tools.doctor import examine, worst
    from signer.tools.doctor.finding import Level

    findings = examine(config_file, SystemClock().now())
    level = worst(findings)
    if as_json:
        told = {"level": level, "findings": [each._asdict() for each in findings]}
        click.echo(json.dumps(told, indent=2))
    else:
        _print(findings)
    if level is Level.WRONG:
        sys.exit(1)


def _print(findings: list[Finding]) -> None:
    from signer.cli.output import print_table
    from signer.tools.doctor.finding import Level

    rows = [[each.level, each.check, each.seen, each.remedy] for each in findings]
    if not sys.stdout.isatty():
        # Labels and paths may hold anything, and whoever reads may know nothing but ASCII.
        rows = [[str(c).encode("ascii", "backslashreplace").decode() for c in row] for row in rows]
    print_table(["", "what", "what is so", "what to do"], rows)
    counts = {level: sum(each.level is level for each in findings) for level in Level}
    click.echo(", ".join(f"{counts[level]} {level}" for level in reversed(Level)))
