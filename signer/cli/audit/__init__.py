"""``signer audit``: questions to the audit log; all but one are answered from its files."""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import cbor2
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
from signer.cli.audit.verify import verify
from signer.cli.options import FILE, NEW_FILE
from signer.cli.output import output, print_table, print_values, say
from signer.errors import OperatorError
from signer.formats import base45
from signer.text import count

T = TypeVar("T")

_MAX_MESSAGE = 4 << 20
"""Bytes of a message, as in the API, and of a decompressed one."""

_JWS = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.([A-Za-z0-9_-]+)")


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


def _item_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds ``[SHA256]`` and ``--file``; the command gives both to ``_hashes_wanted``."""
    command = click.option("--file", type=FILE, help="A signed message.")(command)
    return click.argument("sha256_hex", metavar="[SHA256]", required=False)(command)


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
        return describe(reader.record(seq))
    start = max(first, reader.size - last)
    return [describe(record) for record in reader.records(start, reader.size)]


def _print_matches(matches: list[dict[str, Any]]) -> None:
    for match in matches:
        print_values(match)


@audit.command()
@output(lambda matches: matches, _print_matches, ok=bool)
@log_options
@_item_options
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
    matches = _search(reader, first, _hashes_wanted(sha256_hex, file))
    described = [_described(reader, match) for match in matches]
    if not described:
        say(f"not in the log: searched {count(reader.size - first, 'record')}", err=True)
    return described


@audit.command()
@log_options
@_item_options
@click.option("--record", "seq", metavar="N", type=click.IntRange(min=0), help="The intent.")
@click.option("--item", "index", type=click.IntRange(min=0), default=0, help="With --record.")
@checkpoint_option
@origin_option
@click.option("--output", type=NEW_FILE)
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
        match = _choose(list(_search(reader, first, _hashes_wanted(sha256_hex, file))))
    checkpoint, note = log.newest_checkpoint(checkpoint_files, origin)
    reader, _ = log.reader()  # the log may have grown up to the checkpoint in the meantime
    text = prove_item(reader, match, checkpoint, note)
    proof.verify(text, spki_of(log.key), origin)
    if output is None:
        say(text)
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
        say(json.dumps(describe(record)))


# --- finding -----------------------------------------------------------------------------------


def _search(reader: Reader, first: int, wanted: frozenset[bytes]) -> Iterator[Match]:
    return find_items(records(reader, first, reader.size, "searching"), wanted)


def _hashes_wanted(sha256_hex: str | None, file: Path | None) -> frozenset[bytes]:
    """Returns the SHA-256 values under which the log may have the signature or digest."""
    if (sha256_hex is None) == (file is None):
        raise click.UsageError("give a SHA-256 in hex, or --file FILE")
    if file is not None:
        with file.open("rb") as opened:
            content = opened.read(_MAX_MESSAGE + 1)
        if len(content) > _MAX_MESSAGE:
            raise OperatorError(f"{file} is longer than {_MAX_MESSAGE} bytes: it is not a message")
        return frozenset(sha256(raw).digest() for raw in _signatures_in(content))
    try:
        digest = bytes.fromhex(sha256_hex or "")
    except ValueError:
        digest = b""
    if len(digest) != sha256().digest_size:
        raise click.UsageError("SHA256 must have 64 hexadecimal digits")
    return frozenset({digest})


def _signatures_in(content: bytes) -> Iterator[bytes]:
    """Yields the raw signature of a file for each form that the file may have.

    The forms are the signature itself, the same in Base64, a compact JWS (RFC 7515
    section 7.1), a COSE_Sign1 (RFC 9052 section 4.2) and an HCERT's text.
    """
    yield content
    text = content.strip()
    with suppress(binascii.Error):
        yield base64.b64decode(text, validate=True)
    if jws := _JWS.fullmatch(text):
        with suppress(binascii.Error):
            yield base64.urlsafe_b64decode(jws[1] + b"=" * (-len(jws[1]) % 4))
    with suppress(ValueError, zlib.error):
        if text.startswith(b"HC1:"):
            deflated = base45.decode(text[4:])
            content = zlib.decompressobj().decompress(deflated, _MAX_MESSAGE)
    with suppress(cbor2.CBORError):
        match cbor2.loads(content, max_depth=4, allow_indefinite=False):
            case cbor2.CBORTag(tag=18, value=[bytes(), _, bytes(), bytes() as signature]):
                yield signature


def _choose(matches: list[Match]) -> Match:
    """Returns the match to prove: the first that was signed."""
    if not matches:
        raise OperatorError("it is not in the log: there is nothing to prove")
    chosen = next((match for match in matches if match.outcome is not None), matches[0])
    if len(matches) > 1:
        say(
            f"found {len(matches)} times; this proves intent {chosen.intent}, item {chosen.item}; "
            "for another give --record and --item",
            err=True,
        )
    return chosen


def _described(reader: Reader, match: Match) -> dict[str, Any]:
    """Returns a match with what its two records say of it."""
    asked = describe(reader.record(match.intent))
    shown = ("principal", "key_version", "format", "rule", "policy", "request_id")
    described = {
        "intent": match.intent,
        "item": match.item,
        "outcome": match.outcome,
        "asked": asked["time"],
        **{name: asked["fields"].get(name) for name in shown},
        "digest": asked["items"][match.item],
        "signature": None,
        "failure": None,
    }
    if match.outcome is not None:
        answer = describe(reader.record(match.outcome))
        failure = answer["fields"].get("failures", {}).get(str(match.item))
        described["failure"] = failure
        if failure is None and "items" in answer:
            described["signature"] = answer["items"][match.item]
    return described


# --- printing ----------------------------------------------------------------------------------


def _print_record(described: dict[str, Any]) -> None:
    """Prints one record, and the text of an operation below it, as its officers read it."""
    fields = dict(described["fields"])
    content = str(fields.pop("content", ""))
    print_values({**described, "fields": fields})
    if content:
        say("\n" + content.rstrip("\n"))


def _summary(described: dict[str, Any]) -> str:
    """Returns the fields of a record in one line; long ones are cut."""
    items = [count(len(described["items"]), "item")] if "items" in described else []
    shown = {name: value for name, value in described["fields"].items() if name != "content"}
    fields = [f"{name}={_short(value)}" for name, value in shown.items()]
    return ", ".join(items + fields)


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
