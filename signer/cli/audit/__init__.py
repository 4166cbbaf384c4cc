"""``signer audit``: questions to the audit log; all but one are answered from its files."""

import json
from collections import deque
from typing import Any

import click

from signer.audit.read.filters import Wanted
from signer.audit.read.search import describe
from signer.cli.audit.archive import archive
from signer.cli.audit.checkpoint import checkpoint
from signer.cli.audit.finding import find, prove
from signer.cli.audit.log_files import LogFiles, filter_options, kind_option, log_options, records
from signer.cli.audit.printing import print_record, print_records
from signer.cli.audit.verify import verify
from signer.cli.output import output, say


@click.group(commands=[archive, checkpoint, find, prove, verify])
def audit() -> None:
    """Verifies the audit log, searches it, and proves what it says. Works offline.

    Only `checkpoint` needs the daemon and a network: the others need a copy of the
    log's directory, the public audit key and a checkpoint. To trust the machine
    least, take the key and a checkpoint from elsewhere.

    \b
      signer audit verify --config /etc/signer/signer.yaml
      signer audit find --dir copy --key audit.pub.pem --file certificate.txt
      signer audit prove --dir copy --key audit.pub.pem --file certificate.txt \\
        > proof.json
      signer audit verify --proof proof.json --key audit.pub.pem \\
        --file certificate.txt
    """


def _print(shown: dict[str, Any] | list[dict[str, Any]]) -> None:
    if isinstance(shown, dict):
        print_record(shown)
    else:
        print_records(shown)


@audit.command(short_help="Shows one record in full, or the last ones in a table.")
@output(lambda shown: shown, _print)
@log_options
@click.argument("seq", type=click.IntRange(min=0), required=False)
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 10_000))
@kind_option
@filter_options
def show(
    *, log: LogFiles, seq: int | None, last: int, wanted: Wanted
) -> dict[str, Any] | list[dict[str, Any]]:
    """Shows one record in full, or the last ones that match in a table.

    An outcome is shown where its intent is: it has no principal and key of its own.

    \b
      signer audit show --config /etc/signer/signer.yaml
      signer audit show --config /etc/signer/signer.yaml 4711
      signer audit show --dir copy --facility 01-001 --kind intent \\
        --since 2026-01-01
    """
    reader, first = log.reader()
    if seq is not None:
        return describe(reader.record(seq))
    if wanted.everything:
        start = max(first, reader.size - last)
        return [describe(record) for record in reader.records(start, reader.size)]
    searched = records(reader, first, reader.size, "searching")
    return [describe(record) for record in deque(wanted.select(searched), last)]


@audit.command(short_help="Prints records as JSON, one a line.")
@log_options
@click.option("--from", "start", metavar="N", type=click.IntRange(min=0), help="First record.")
@click.option("--to", "stop", metavar="N", type=click.IntRange(min=0), help="Last record.")
def export(*, log: LogFiles, start: int | None, stop: int | None) -> None:
    """Prints records as JSON, one a line, bytes in hex, operations as text.

    \b
      signer audit export --config /etc/signer/signer.yaml > log.jsonl
      signer audit export --dir copy --from 1000 --to 1999 \\
        | jq -c 'select(.kind == "denials")'
    """
    reader, first = log.reader()
    begin = first if start is None else start
    end = reader.size if stop is None else min(stop + 1, reader.size)
    for record in records(reader, begin, end, "exporting"):
        say(json.dumps(describe(record)))
