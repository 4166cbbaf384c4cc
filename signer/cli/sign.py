"""``signer sign``: signs files, or the lines of files."""

import base64
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from signer.cli.completion import key_and_version_names
from signer.cli.connection import connect, daemon_options
from signer.cli.options import FILE, inputs_argument, json_flag
from signer.cli.output import explained, new_folder, print_json, put, say, write_file
from signer.cli.progress import progress
from signer.client import ItemError, ItemResult, SignerClient, SignerClientError
from signer.errors import OperatorError, Reason
from signer.model import MESSAGE_BYTES, Format
from signer.text import count

_STDIN = "-"

_SUFFIXES = {
    Format.DIGEST: ".sig",
    Format.MESSAGE: ".sig",
    Format.JWS: ".jws",
    Format.COSE_SIGN1: ".cose",
    Format.HCERT: ".hc1",
    Format.CMS: ".p7s",
    Format.TIMESTAMP: ".tsr",
    Format.SHC: ".shc",
    Format.CMS_DIGEST: ".p7s",
}


class _Source(NamedTuple):
    """Where a payload comes from: a file, or one line of it (counted from 1)."""

    name: str
    line: int | None = None

    def __str__(self) -> str:
        name = "stdin" if self.name == _STDIN else self.name
        return name if self.line is None else f"{name}, line {self.line}"


_Item = tuple[_Source, bytes]


@click.command()
@daemon_options
@click.option(
    "--key",
    required=True,
    metavar="NAME",
    shell_complete=key_and_version_names,
    help="A key, or a version of it.",
)
@click.option(
    "--format",
    "format_name",
    required=True,
    type=click.Choice([format_.value for format_ in Format], case_sensitive=False),
    help="What the payloads are, and what they become.",
)
@click.option("--lines", is_flag=True, help="Each line is a payload (digests in hex).")
@click.option(
    "--out",
    metavar="DIR|-",
    help="Folder for the signatures (a new one is made), - to print them; else beside each file.",
)
@json_flag("Print one JSON object a payload.")
@click.option(
    "--revocation",
    is_flag=True,
    help="With --json, of HCERT: the handles under which each certificate can be revoked.",
)
@click.option(
    "--cosignatures",
    metavar="FILE",
    type=FILE,
    help="The facilities' signed records, one JWS a line, in the order of the payloads.",
)
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1, 4096),
    help="Payloads per call; by default as many as policy and quotas allow, at most 500.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=30,
    show_default=True,
    help="For each call, with all its retries.",
)
@inputs_argument
def sign(
    *,
    client_file: Path,
    key: str,
    format_name: str,
    lines: bool,
    out: str | None,
    as_json: bool,
    revocation: bool,
    cosignatures: Path | None,
    batch: int | None,
    timeout: float,
    inputs: tuple[str, ...],
) -> None:
    """Signs files, or each line of files; `-` is standard input.

    Writes FILE.jws, .hc1, .shc, .cose, .p7s, .tsr or .sig next to each FILE. With
    --lines it prints one signature a line, in the order of the payloads: JWS, HCERT
    and SHC as text, the others in base64, an empty line where a payload failed.
    Failed payloads are listed on stderr, and the exit code is 1; all others are
    signed. If a call fails for good, its error is printed once, nothing more is
    sent, and the payloads that are left count as failed.

    \b
    Three records, signed as JWS next to each file:
      signer sign --client issuer.yaml --key facilities/01-001/keys/records \\
        --format JWS a.json b.json c.json

    \b
    A million records, one JSON object a line:
      signer sign --client issuer.yaml --key facilities/01-001/keys/records \\
        --format JWS --lines records.jsonl > records.jws

    \b
    Vaccination certificates from another program, with JSON as output:
      make-records | signer sign --client moh.yaml --key facilities/moh/keys/dcc \\
        --format HCERT --lines --json -

    \b
    The digests that sha256sum prints:
      sha256sum *.pdf | cut -c -64 | signer sign --client moh.yaml \\
        --key facilities/moh/keys/digest --format DIGEST --lines -
    """
    message_format = Format(format_name)
    if lines and out not in (None, _STDIN):
        raise click.UsageError("--lines prints the signatures: write them to a file with > FILE")
    if revocation and (not as_json or message_format is not Format.HCERT):
        raise click.UsageError("--revocation goes with --json and the format HCERT")
    targets = {} if lines else _targets(inputs, out, message_format)
    items = _lines(inputs, message_format) if lines else _files(inputs)
    single = not lines and len(inputs) == 1
    printer = _Printer(message_format, targets, as_json=as_json, single=single)
    prints = as_json or len(targets) < len(inputs)
    total = None if lines else len(inputs)

    def call(client: SignerClient, payloads: Iterable[bytes]) -> Iterable[ItemResult]:
        return client.sign(
            key,
            message_format,
            payloads,
            batch_items=batch,
            timeout=timeout,
            revocation=revocation,
            cosignatures=None if cosignatures is None else _records(cosignatures),
        )

    folder = None if out is None or not targets else Path(out)
    with new_folder(folder):
        with progress("signing", hidden=prints and sys.stdout.isatty()) as advance:
            _sign_all(client_file, call, items, printer, lambda done: advance(done, total))
        printer.check()


def _sign_all(
    client_file: Path,
    call: Callable[[SignerClient, Iterable[bytes]], Iterable[ItemResult]],
    items: Iterator[_Item],
    printer: "_Printer",
    advance: Callable[[int], None],
) -> None:
    """Signs all items; if a call fails for good, prints its error and accounts for the rest."""
    sources = deque[_Source]()
    try:
        with connect(client_file) as client:
            for done, result in enumerate(call(client, _payloads(items, sources)), 1):
                printer.take(sources.popleft(), result)
                advance(done)
    except OperatorError as error:
        if not isinstance(error.__cause__, SignerClientError):
            raise
        say(f"signer: {error}", err=True)
        for source in (*sources, *(source for source, _ in items)):
            printer.leave(source, error.__cause__)


def _payloads(items: Iterable[_Item], pending: deque[_Source]) -> Iterator[bytes]:
    """Yields the payloads of items, and appends the source of each to ``pending``."""
    for source, payload in items:
        pending.append(source)
        yield payload


def _records(path: Path) -> Iterator[bytes]:
    with explained(path, "read"), path.open("rb") as file:
        for line in file:
            yield line.strip()
    raise OperatorError(f"{path} has fewer lines than there are payloads: give one for each")


def _targets(inputs: tuple[str, ...], out: str | None, message_format: Format) -> dict[str, Path]:
    """Returns the output file of each input; inputs whose signature is printed are absent."""
    if out == _STDIN:
        return {}
    targets: dict[str, Path] = {}
    for name in inputs:
        if name == _STDIN and out is None:
            continue
        path = Path("stdin" if name == _STDIN else name)
        folder = path.parent if out is None else Path(out)
        targets[name] = folder / f"{path.name}{_SUFFIXES[message_format]}"
    twice = [str(path) for path, times in Counter(targets.values()).items() if times > 1]
    if twice or len(set(inputs)) < len(inputs):
        what = ", ".join(twice) or "an input"
        raise click.UsageError(f"{what} would be written twice: sign these files separately")
    return targets


def _files(inputs: Iterable[str]) -> Iterator[_Item]:
    for name in inputs:
        with click.open_file(name, "rb") as file:
            # One byte more than allowed: the client then fails this item alone.
            yield _Source(name), file.read(MESSAGE_BYTES + 1)


def _lines(inputs: Iterable[str], message_format: Format) -> Iterator[_Item]:
    read = _digest if message_format in {Format.DIGEST, Format.CMS_DIGEST} else bytes
    for name in inputs:
        with click.open_file(name, "rb") as file:
            number = 0
            while line := file.readline(MESSAGE_BYTES + 1):
                rest = line
                while rest and not rest.endswith(b"\n"):  # too long; or the last one
                    rest = file.readline(MESSAGE_BYTES)
                number += 1
                yield _Source(name, number), read(line.rstrip(b"\r\n"))


def _digest(line: bytes) -> bytes:
    """Reads hex; of other text it returns b"", which the appliance refuses as a digest."""
    try:
        return bytes.fromhex(line.decode("ascii"))
    except ValueError:
        return b""


def _failed_with_call(result: ItemResult) -> bool:
    """Whether the item has no signature because its whole call failed, which is said once."""
    error = result.error
    return error is not None and not result.key_version and error.reason != Reason.PAYLOAD_INVALID


class _Printer:
    """Writes signatures to the ``targets`` of inputs or prints them, that of a ``single`` raw."""

    def __init__(
        self, message_format: Format, targets: dict[str, Path], *, as_json: bool, single: bool
    ) -> None:
        self._text = message_format in {Format.JWS, Format.HCERT, Format.SHC}
        self._targets = targets
        self._json = as_json
        self._single = single
        self._taken = self._failed = 0

    def take(self, source: _Source, result: ItemResult) -> None:
        self._taken += 1
        target = self._targets.get(source.name)
        if result.error is not None:
            self._failed += 1
            if not _failed_with_call(result):
                say(f"{source}: {result.error.reason}: {result.error.message}", err=True)
        elif target is not None:
            write_file(target, result.signature)
        self._print(source, result, target)

    def leave(self, source: _Source, error: SignerClientError) -> None:
        """Accounts for a payload that was not sent, because a call failed for good."""
        failure = ItemError(error.code, error.reason, error.message)
        self.take(source, ItemResult(self._taken, b"", "", failure))

    def _print(self, source: _Source, result: ItemResult, target: Path | None) -> None:
        if self._json:
            print_json(self._describe(source, result, target), indent=None)
        elif target is None and self._single and not self._text:
            put(result.signature)
        elif target is None:
            say(self._encode(result.signature))

    def check(self) -> None:
        """Raises OperatorError if a payload could not be signed."""
        if self._failed:
            payloads = count(self._taken, "payload")
            raise OperatorError(
                f"{self._failed} of {payloads} {'has' if self._taken == 1 else 'have'} no signature"
            )

    def _encode(self, signature: bytes) -> str:
        return signature.decode("ascii") if self._text else base64.b64encode(signature).decode()

    def _describe(
        self, source: _Source, result: ItemResult, target: Path | None
    ) -> dict[str, object]:
        described: dict[str, object] = {"index": result.index, "input": source.name}
        if source.line is not None:
            described["line"] = source.line
        if result.audit_record is not None:
            described["audit_record"] = result.audit_record
        if result.error is not None:
            error = {"reason": result.error.reason, "message": result.error.message}
            return {**described, "error": error}
        described["key_version"] = result.key_version
        if result.revocation is not None:
            handles = result.revocation._asdict().items()
            described["revocation"] = {
                name: base64.b64encode(each).decode() for name, each in handles
            }
        if target is not None:
            return {**described, "output": str(target)}
        return {**described, "signature": self._encode(result.signature)}
