"""``signer audit``: questions to the audit log; all but one are answered from its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from signer.audit.format import proof
from signer.audit.read.reader import Reader
from signer.audit.read.search import Match, describe, find_items, locate, prove_item
from signer.cli.audit.archive import archive
from signer.cli.audit.checkpoint import checkpoint
from signer.cli.audit.log_files import (
    LogFiles,
    checkpoint_option,
    log_options,
    origin_option,
    records,
    spki_of,
)
from signer.cli.audit.signed_file import hashes_wanted, item_options
from signer.cli.audit.verify import verify
from signer.cli.output import output, print_table, print_values
from signer.errors import OperatorError
from signer.text import count


@click.group(commands=[archive, checkpoint, verify])
def audit() -> None:
    """Verifies the audit log, searches it, and proves what it says. Works offline.

    Only `checkpoint` needs the daemon and a network: the others need a copy of the
    log's directory, the public audit key and a checkpoint. To trust the machine
    least, take the key and a checkpoint from elsewhere.

    \b
      signer audit verify --config /etc/signer/signer.yaml
      signer audit find --dir copy --key audit.pub.pem --file certificate.txt
      signer audit prove --dir copy --key audit.pub.pem --file certificate.txt > proof.json
      signer audit verify --proof proof.json --key audit.pub.pem
    """


def _print_records(shown: dict[str, Any] | list[dict[str, Any]]) -> None:
    if isinstance(shown, dict):
        _print_record(shown)
        return
    rows = [(record["seq"], record["time"], record["kind"], _summary(record)) for record in shown]
    print_table(("record", "time", "kind", "about"), rows)


@audit.command()
@output(lambda shown: shown, _print_records)
@log_options
@click.argument("seq", type=click.IntRange(min=0), required=False)
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 10_000))
def show(*, log: LogFiles, seq: int | None, last: int) -> dict[str, Any] | list[dict[str, Any]]:
    """Shows one record in full, or the last ones in a table.

    \b
      signer audit show --config /etc/signer/signer.yaml
      signer audit show --config /etc/signer/signer.yaml 4711
    """
    reader, first = log.reader()
    if seq is not None:
        [record] = reader.records(seq, seq + 1)
        return describe(record)
    start = max(first, reader.size - last)
    return [describe(record) for record in reader.records(start, reader.size)]


def _print_matches(matches: list[dict[str, Any]]) -> None:
    for match in matches:
        print_values(match)


@audit.command()
@output(lambda matches: matches, _print_matches, ok=bool)
@log_options
@item_options
def find(*, log: LogFiles, sha256_hex: str | None, file: Path | None) -> list[dict[str, Any]]:
    """Finds a signature or a digest in the log. Exit code 1 if it is not there.

    SHA256 is that of a raw signature, or the digest of the bytes that were
    signed. FILE is a signature, raw or in Base64, or a finished message: a
    compact JWS, a COSE_Sign1, an HCERT's text.

    The result has been read, but not verified: `signer audit verify` does that
    for the whole log, `prove` for one signature.

    \b
      signer audit find --config /etc/signer/signer.yaml --file certificate.txt
      signer audit find --dir copy "$(sha256sum < signature | cut -c1-64)"
    """
    reader, first = log.reader()
    matches = _search(reader, first, hashes_wanted(sha256_hex, file))
    described = [_described(reader, match) for match in matches]
    if not described:
        click.echo(f"not in the log: searched {count(reader.size - first, 'record')}", err=True)
    return described


@audit.command()
@log_options
@item_options
@click.option("--record", "seq", metavar="N", type=click.IntRange(min=0), help="The intent.")
@click.option("--item", "index", type=click.IntRange(min=0), default=0, help="With --record.")
@checkpoint_option
@origin_option
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def prove(
    *,
    log: LogFiles,
    sha256_hex: str | None,
    file: Path | None,
    seq: int | None,
    index: int,
    checkpoint_files: tuple[Path, ...],
    origin: str | None,
    output: Path | None,
) -> None:
    """Writes the proof of one signature: JSON that verifies with only the audit key.

    Name the signature as for `find`, or by the number of its intent. The proof is
    verified before it is written. It shows one item of its batch and nothing of
    the others.

    \b
      signer audit prove --config /etc/signer/signer.yaml --file certificate.txt > proof.json
      signer audit prove --dir copy --record 4711 --item 3 --output proof.json
    """
    reader, first = log.reader()
    origin = origin or log.origin()
    if seq is not None:
        match = locate(reader, seq, index)
    else:
        match = _choose(list(_search(reader, first, hashes_wanted(sha256_hex, file))))
    checkpoint, note = log.newest_checkpoint(checkpoint_files, origin)
    reader, _ = log.reader()  # the log may have grown up to the checkpoint in the meantime
    text = prove_item(reader, match, checkpoint, note)
    proof.verify(text, spki_of(log.key), origin)
    if output is None:
        click.echo(text)
    else:
        output.write_text(f"{text}\n")


@audit.command()
@log_options
@click.option("--from", "start", metavar="N", type=click.IntRange(min=0), help="First record.")
@click.option("--to", "stop", metavar="N", type=click.IntRange(min=0), help="Last record.")
def export(*, log: LogFiles, start: int | None, stop: int | None) -> None:
    """Prints records as JSON, one a line, bytes in hex, operations as text.

    \b
      signer audit export --config /etc/signer/signer.yaml > log.jsonl
      signer audit export --dir copy --from 1000 --to 1999 | jq -c 'select(.kind == "denials")'
    """
    reader, first = log.reader()
    begin = first if start is None else start
    end = reader.size if stop is None else min(stop + 1, reader.size)
    for record in records(reader, begin, end, "exporting"):
        click.echo(json.dumps(describe(record)))


# --- finding -----------------------------------------------------------------------------------


def _search(reader: Reader, first: int, wanted: frozenset[bytes]) -> Iterator[Match]:
    return find_items(records(reader, first, reader.size, "searching"), wanted)


def _choose(matches: list[Match]) -> Match:
    """Returns the match to prove: the first that was signed."""
    if not matches:
        raise OperatorError("it is not in the log: there is nothing to prove")
    chosen = next((match for match in matches if match.outcome is not None), matches[0])
    if len(matches) > 1:
        click.echo(
            f"found {len(matches)} times; this proves intent {chosen.intent}, item {chosen.item}; "
            "for another give --record and --item",
            err=True,
        )
    return chosen


def _described(reader: Reader, match: Match) -> dict[str, Any]:
    """Returns a match with what its two records say of it."""
    (intent,) = reader.records(match.intent, match.intent + 1)
    asked = describe(intent)
    described = {
        "intent": match.intent,
        "item": match.item,
        "outcome": match.outcome,
        "asked": asked["time"],
        **{name: asked["fields"].get(name) for name in _SHOWN},
        "digest": asked["items"][match.item],
        "signature": None,
        "failure": None,
    }
    if match.outcome is not None:
        (outcome,) = reader.records(match.outcome, match.outcome + 1)
        answer = describe(outcome)
        failure = answer["fields"].get("failures", {}).get(str(match.item))
        described["failure"] = failure
        if failure is None and "items" in answer:
            described["signature"] = answer["items"][match.item]
    return described


_SHOWN = ("principal", "key_version", "format", "rule", "policy", "request_id")


# --- printing ----------------------------------------------------------------------------------


def _print_record(described: dict[str, Any]) -> None:
    """Prints one record, and the text of an operation below it, as its officers read it."""
    fields = dict(described["fields"])
    content = str(fields.pop("content", ""))
    print_values({**described, "fields": fields})
    if content:
        lines = (
            "".join(c if c.isprintable() else "?" for c in line) for line in content.split("\n")
        )
        click.echo("\n" + "\n".join(lines).rstrip("\n"))


def _summary(described: dict[str, Any]) -> str:
    """Returns the fields of a record in one line; long ones are cut."""
    items = [count(len(described["items"]), "item")] if "items" in described else []
    shown = {name: value for name, value in described["fields"].items() if name != "content"}
    fields = [f"{name}={_short(value)}" for name, value in shown.items()]
    return ", ".join(items + fields)


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
