"""``signer audit find`` and ``prove``: a message in hand is searched, compared and proven."""

import functools
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from signer.audit.format import proof
from signer.audit.read.filters import Wanted
from signer.audit.read.in_hand import Compared, InHand, compare, hashes_of, read_message
from signer.audit.read.reader import Reader
from signer.audit.read.search import Match, describe, find_items, locate, prove_item
from signer.cli.audit.log_files import (
    LogFiles,
    checkpoint_option,
    filter_options,
    log_options,
    origin_option,
    records,
    spki_of,
)
from signer.cli.audit.printing import finding, print_matches
from signer.cli.options import FILE, NEW_FILE
from signer.cli.output import output, say
from signer.errors import OperatorError
from signer.formats.finished import MAX_MESSAGE
from signer.text import count

T = TypeVar("T")


class Sought(NamedTuple):
    """What is searched: hashes, and the message in hand if it is not only a hash."""

    hashes: frozenset[bytes]
    messages: list[InHand]

    def compare(self, digest: bytes, signature: bytes | None) -> Compared | None:
        """Compares the message in hand with an item; None without a message."""
        return compare(self.messages, digest, signature) if self.messages else None


def message_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds ``--file`` and ``--signature``; the command gets the ``messages`` they may hold."""

    @click.option("--file", type=FILE, help="A signed message, or a signature.")
    @click.option(
        "--signature",
        "signature_file",
        type=FILE,
        help="The raw signature of --file, for the formats MESSAGE and DIGEST.",
    )
    @functools.wraps(command)
    def wrapped(*, file: Path | None, signature_file: Path | None, **options: Any) -> T:
        if signature_file is not None and file is None:
            raise click.UsageError("--signature goes with --file, the message that it signs")
        signature = None if signature_file is None else _content(signature_file)
        messages = [] if file is None else read_message(_content(file), signature)
        return command(messages=messages, **options)

    return wrapped


def _item_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds ``[SHA256]`` and the message; the command gets what is ``sought``, or None."""

    @message_options
    @click.argument("sha256_hex", metavar="[SHA256]", required=False)
    @functools.wraps(command)
    def wrapped(*, sha256_hex: str | None, messages: list[InHand], **options: Any) -> T:
        return command(sought=_sought(sha256_hex, messages), **options)

    return wrapped


@click.command()
@output(lambda matches: matches, print_matches, ok=lambda matches: bool(matches) and _ok(matches))
@log_options
@_item_options
@filter_options
def find(*, log: LogFiles, sought: Sought | None, wanted: Wanted) -> list[dict[str, Any]]:
    """Finds a message, a signature or a digest in the log. Exit code 1 if it is not there.

    FILE is a finished message (a compact JWS, a COSE_Sign1, an HCERT's text), a raw
    signature, also in Base64, or the message of a MESSAGE or DIGEST; give its raw signature
    with --signature. SHA256 is that of a raw signature, or the digest of the bytes that were
    signed.

    The bytes of a message are compared with what was signed: a genuine signature in a changed
    message is reported as such, with exit code 1.

    The result has been read, but not verified: `signer audit verify` does that
    for the whole log, `prove` for one signature.

    \b
      signer audit find --config /etc/signer/signer.yaml --file certificate.txt
      signer audit find --dir copy --file record.json --signature record.sig
      signer audit find --dir copy "$(sha256sum < signature | cut -c1-64)" \\
        --since 2026-01-01
    """
    reader, first = log.reader()
    found = [
        described
        for match in _search(reader, first, _needed(sought))
        if wanted.of_intent(reader.record(match.intent))
        for described in [_described(reader, match, _needed(sought))]
    ]
    if not found:
        say(f"not in the log: searched {count(reader.size - first, 'record')}", err=True)
    return [each for each in found if _ok([each])] or found


@click.command(short_help="Writes the proof of one signature.")
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
    sought: Sought | None,
    seq: int | None,
    index: int,
    checkpoint_files: tuple[Path, ...],
    origin: str | None,
    output: Path | None,
) -> None:
    """Writes the proof of one signature: JSON that verifies with only the audit key.

    Name the signature as for `find`, or by the number of its intent; a message in hand is
    compared, and nothing is proven of a changed one. The proof is verified before it is
    written. It shows one item of its batch and nothing of the others.

    \b
      signer audit prove --config /etc/signer/signer.yaml \\
        --file certificate.txt > proof.json
      signer audit prove --dir copy --record 4711 --item 3 --output proof.json
    """
    reader, first = log.reader()
    origin = origin or log.origin()
    if seq is not None:
        match = locate(reader, seq, index)
        if sought is not None:
            match = _choose(reader, [match], sought)
    else:
        sought = _needed(sought)
        match = _choose(reader, list(_search(reader, first, sought)), sought)
    checkpoint, note = log.newest_checkpoint(checkpoint_files, origin)
    reader, _ = log.reader()  # the log may have grown up to the checkpoint in the meantime
    text = prove_item(reader, match, checkpoint, note)
    proof.verify(text, spki_of(log.key), origin)
    if output is None:
        say(text)
    else:
        output.write_text(f"{text}\n")


def _content(file: Path) -> bytes:
    with file.open("rb") as opened:
        content = opened.read(MAX_MESSAGE + 1)
    if len(content) > MAX_MESSAGE:
        raise OperatorError(f"{file} is longer than {MAX_MESSAGE} bytes: it is not a message")
    return content


def _sought(sha256_hex: str | None, messages: list[InHand]) -> Sought | None:
    if sha256_hex is None:
        return Sought(hashes_of(messages), messages) if messages else None
    if messages:
        raise click.UsageError("give a SHA-256 in hex, or --file FILE, not both")
    try:
        digest = bytes.fromhex(sha256_hex)
    except ValueError:
        digest = b""
    if len(digest) != sha256().digest_size:
        raise click.UsageError("SHA256 must have 64 hexadecimal digits")
    return Sought(frozenset({digest}), [])


def _needed(sought: Sought | None) -> Sought:
    if sought is None:
        raise click.UsageError("give a SHA-256 in hex, or --file FILE")
    return sought


def _search(reader: Reader, first: int, sought: Sought) -> Iterator[Match]:
    return find_items(records(reader, first, reader.size, "searching"), sought.hashes)


def _ok(matches: Iterable[dict[str, Any]]) -> bool:
    """Whether the item that was found equals the one in hand; a bare hash is not compared."""
    said = [match["compared"] for match in matches]
    return all(each is None or Compared(each).holds for each in said)


def _choose(reader: Reader, matches: list[Match], sought: Sought) -> Match:
    """Returns the match to prove: the first that was signed and is the message in hand."""
    if not matches:
        raise OperatorError("it is not in the log: there is nothing to prove")
    said = [(match, _described(reader, match, sought)) for match in matches]
    held = [match for match, described in said if _ok([described])]
    if not held:
        match, described = said[0]
        raise OperatorError(
            f"item {match.item} of intent {match.intent}: {finding(described['compared'])}"
            " There is nothing to prove"
        )
    chosen = next((match for match in held if match.outcome is not None), held[0])
    if len(held) > 1:
        say(
            f"found {len(held)} times; this proves intent {chosen.intent}, item {chosen.item}; "
            "for another give --record and --item",
            err=True,
        )
    return chosen


def _on_behalf_of(fields: dict[str, Any]) -> str | None:
    """Returns the facility for which a client of its group signed with its key, else None."""
    by_group = fields.get("rule") == f"groups.{fields.get('group')}.clients"
    return fields.get("facility") if by_group else None


def _described(reader: Reader, match: Match, sought: Sought) -> dict[str, Any]:
    """Returns a match with what its two records say of it, and what comparing it says."""
    asked = describe(reader.record(match.intent))
    shown = ("principal", "key_version", "format", "rule", "policy", "request_id")
    described = {
        "intent": match.intent,
        "item": match.item,
        "outcome": match.outcome,
        "asked": asked["time"],
        **{name: asked["fields"].get(name) for name in shown},
        "on_behalf_of": _on_behalf_of(asked["fields"]),
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
    made = described["signature"]
    compared = sought.compare(
        bytes.fromhex(described["digest"]), None if made is None else bytes.fromhex(made)
    )
    return {**described, "compared": None if compared is None else str(compared)}
