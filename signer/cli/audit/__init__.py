"""``signer audit``: questions to the audit log; all but one are answered from its files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from signer.cli.audit.archive import archive
from signer.cli.audit.checkpoint import checkpoint
from signer.cli.audit.finished import hashes_wanted, item_options
from signer.cli.audit.place import (
    Place,
    checkpoint_option,
    needed,
    newest_checkpoint,
    open_reader,
    origin_of,
    origin_option,
    place_options,
    records,
    spki_of,
)
from signer.cli.audit.verify import verify
from signer.cli.options import json_option
from signer.cli.tables import print_table, print_values
from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.audit.read.reader import Reader
    from signer.audit.read.search import Match


@click.group(commands=[archive, checkpoint, verify])
def audit() -> None:
    """Verifies the audit log, searches it, and proves what it says. Works offline.

    Nothing but `checkpoint` needs the daemon, the token or a network: a copy of the
    log's directory, the public audit key and a checkpoint are enough. Whoever trusts
    the machine least takes the key and a checkpoint from elsewhere.

    \b
      signer audit verify --config /etc/signer/signer.yaml
      signer audit find --dir copy --key audit.pub.pem --file certificate.txt
      signer audit prove --dir copy --key audit.pub.pem --file certificate.txt > proof.json
      signer audit verify --proof proof.json --key audit.pub.pem
    """


@audit.command()
@place_options
@click.argument("seq", type=click.IntRange(min=0), required=False)
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 10_000))
@json_option
def show(
    *, place: Place | None, key_file: Path | None, seq: int | None, last: int, as_json: bool
) -> None:
    """Shows one record in full, or the last ones in a table.

    \b
      signer audit show --config /etc/signer/signer.yaml
      signer audit show --config /etc/signer/signer.yaml 4711
    """
    from signer.audit.read.search import describe

    del key_file  # nothing is signed in what is only shown
    reader, first = open_reader(needed(place))
    start = max(first, reader.size - last) if seq is None else seq
    stop = reader.size if seq is None else seq + 1
    described = [describe(record) for record in reader.records(start, stop)]
    if as_json:
        click.echo(json.dumps(described if seq is None else described[0], indent=2))
    elif seq is None:
        rows = [(each["seq"], each["time"], each["kind"], _summary(each)) for each in described]
        print_table(("record", "time", "kind", "about"), rows)
    else:
        _print_record(described[0])


@audit.command()
@place_options
@item_options
@json_option
def find(
    *,
    place: Place | None,
    key_file: Path | None,
    sha256_hex: str | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """Finds a signature or a digest in the log. Exit code 1 if it is not there.

    SHA256 is that of a raw signature, or the digest of the bytes that were
    signed. FILE is a signature, raw or in Base64, or a finished message: a
    compact JWS, a COSE_Sign1, an HCERT's text.

    What is found has been read, not verified: `signer audit verify` does that
    for the whole log, `prove` for one signature.

    \b
      signer audit find --config /etc/signer/signer.yaml --file certificate.txt
      signer audit find --dir copy "$(sha256sum < signature | cut -c1-64)"
    """
    del key_file  # as in show
    reader, first = open_reader(needed(place))
    found = [
        _found(reader, match) for match in _search(reader, first, hashes_wanted(sha256_hex, file))
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    for each in found if not as_json else ():
        print_values(each)
    if not found:
        click.echo(f"not in the log, of which {reader.size - first} records were read", err=True)
        sys.exit(1)


@audit.command()
@place_options
@item_options
@click.option("--record", "seq", metavar="N", type=click.IntRange(min=0), help="The intent.")
@click.option("--item", "index", type=click.IntRange(min=0), default=0, help="With --record.")
@checkpoint_option
@origin_option
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def prove(
    *,
    place: Place | None,
    key_file: Path | None,
    sha256_hex: str | None,
    file: Path | None,
    seq: int | None,
    index: int,
    checkpoint_files: tuple[Path, ...],
    origin: str | None,
    output: Path | None,
) -> None:
    """Writes the proof of one signature: JSON that verifies with the audit key alone.

    The signature is named as for `find`, or by the number of its intent. The
    proof is verified before it is handed out. It shows one item of its batch and
    nothing of the others.

    \b
      signer audit prove --config /etc/signer/signer.yaml --file certificate.txt > proof.json
      signer audit prove --dir copy --record 4711 --item 3 --output proof.json
    """
    from signer.audit.format import proof
    from signer.audit.read.search import locate
    from signer.audit.read.search import prove as prove_item

    del key_file  # place has it
    place = needed(place)
    reader, first = open_reader(place)
    name, spki = origin or origin_of(place), spki_of(place.key)
    if seq is not None:
        match = locate(reader, seq, index)
    else:
        match = _choose(list(_search(reader, first, hashes_wanted(sha256_hex, file))))
    checkpoint, note = newest_checkpoint(place, checkpoint_files, name, spki)
    reader, _ = open_reader(place)  # the log may have grown up to the checkpoint meanwhile
    text = prove_item(reader, match, checkpoint, note)
    proof.verify(text, spki, name)
    if output is None:
        click.echo(text)
    else:
        output.write_text(f"{text}\n")


@audit.command()
@place_options
@click.option("--from", "start", metavar="N", type=click.IntRange(min=0), help="First record.")
@click.option("--to", "stop", metavar="N", type=click.IntRange(min=0), help="Last record.")
def export(
    *, place: Place | None, key_file: Path | None, start: int | None, stop: int | None
) -> None:
    """Prints records as JSON, one a line, bytes in hex, operations as text.

    \b
      signer audit export --config /etc/signer/signer.yaml > log.jsonl
      signer audit export --dir copy --from 1000 --to 1999 | jq -c 'select(.kind == "denials")'
    """
    from signer.audit.read.search import describe

    del key_file  # as in show
    reader, first = open_reader(needed(place))
    begin = first if start is None else start
    end = reader.size if stop is None else min(stop + 1, reader.size)
    for record in records(reader, begin, end, "exporting"):
        click.echo(json.dumps(describe(record)))


# --- finding -----------------------------------------------------------------------------------


def _search(reader: Reader, first: int, wanted: frozenset[bytes]) -> Iterator[Match]:
    from signer.audit.read.search import find as find_items

    return find_items(records(reader, first, reader.size, "searching"), wanted)


def _choose(matches: list[Match]) -> Match:
    """The one to prove: the first that was signed."""
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


def _found(reader: Reader, match: Match) -> dict[str, Any]:
    """One match, with what its two records say of it."""
    from signer.audit.read.search import describe

    (intent,) = reader.records(match.intent, match.intent + 1)
    asked = describe(intent)
    found = {
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
        done = describe(outcome)
        failure = done["fields"].get("failures", {}).get(str(match.item))
        found["failure"] = failure
        if failure is None and "items" in done:
            found["signature"] = done["items"][match.item]
    return found


_SHOWN = ("principal", "key_version", "format", "rule", "policy", "request_id")


# --- printing ----------------------------------------------------------------------------------


def _print_record(described: dict[str, Any]) -> None:
    """One record; an operation's text stands by itself, as its officers have read it."""
    fields = dict(described["fields"])
    content = str(fields.pop("content", ""))
    print_values({**described, "fields": fields})
    if content:
        lines = (
            "".join(c if c.isprintable() else "?" for c in line) for line in content.split("\n")
        )
        click.echo("\n" + "\n".join(lines).rstrip("\n"))


def _summary(described: dict[str, Any]) -> str:
    """The fields of a record in one line, the long ones cut."""
    items = [f"{len(described['items'])} items"] if "items" in described else []
    shown = {name: value for name, value in described["fields"].items() if name != "content"}
    fields = [f"{name}={_short(value)}" for name, value in shown.items()]
    return ", ".join(items + fields)


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
