"""``signer revocations``: signed lists of revoked certificates, as the EU's gateway takes them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from signer.cli.completion import key_and_version_names, key_names
from signer.cli.connection import client_options
from signer.cli.operations.arguments import TIME
from signer.cli.options import NEW_FOLDER
from signer.cli.output import new_folder, output, say, write_file
from signer.client import ItemResult, KeyVersion, SignerClient
from signer.errors import OperatorError
from signer.formats.cms_template import with_content
from signer.formats.payloads import MessageError
from signer.formats.revocation import (
    HANDLES,
    MAX_ENTRIES,
    HandleKind,
    handle,
    handles_of_text,
    revocation_batch,
)
from signer.model import Format
from signer.text import count

_TEXT = b"HC1:"


@click.group()
def revocations() -> None:
    """Revokes certificates: builds the signed lists that verifiers and other countries load.

    \b
      signer revocations build --client moh.yaml --country VN --expires +365d \\
        --key facilities/moh/keys/documents --of facilities/moh/keys/dcc \\
        --out lists revoked.txt
    """


def _show(made: list[dict[str, object]]) -> None:
    for each in made:
        say(f"{each['file']}: {each['handles']} revoked")
    say(f"{count(len(made), 'list')}, signed by {made[0]['key_version']}", err=True)


@revocations.command("build", short_help="Builds signed lists from a file of certificates.")
@output(lambda made: made, _show)
@client_options
@click.option(
    "--key",
    required=True,
    metavar="NAME",
    shell_complete=key_names,
    help="The key that signs the lists; it has the format CMS.",
)
@click.option(
    "--of",
    "signer",
    metavar="NAME",
    shell_complete=key_and_version_names,
    help="The key or version that signed the certificates; without it the list applies to any.",
)
@click.option("--country", required=True, metavar="CC", help="The issuer in the certificates.")
@click.option(
    "--handle",
    "kind_name",
    type=click.Choice([kind.value for kind in HandleKind], case_sensitive=False),
    default=HandleKind.UCI.value,
    show_default=True,
    help="What the list identifies a certificate by.",
)
@click.option(
    "--expires",
    required=True,
    metavar="TIME",
    type=TIME,
    help="When no certificate in the list is valid any more, as in 2027-06-01T00:00:00Z or +365d.",
)
@click.option("--out", required=True, type=NEW_FOLDER, help="A new or empty folder for the lists.")
@click.argument("file", metavar="FILE", type=click.File("rb"))
def build(
    *,
    client: SignerClient,
    key: str,
    signer: str | None,
    country: str,
    kind_name: str,
    expires: float,
    out: Path,
    file: Any,
) -> list[dict[str, object]]:
    """Builds signed lists of revoked certificates from FILE, or standard input (`-`).

    Each line is a UVCI (the member `ci` of a certificate) or the text of a
    certificate, HC1:...; handles of the kind SIGNATURE need the texts. Duplicate
    lines count once. A list has up to 1,000 handles and no names: it is a CMS
    signature that contains the list in JSON (batch-0001.p7m); the JSON alone is
    written beside it. Verifiers check it with the certificate of the key, which
    `signer keys export --form certificates` publishes.

    \b
      signer revocations build --client moh.yaml --country VN --expires +365d \\
        --key facilities/moh/keys/documents --of facilities/moh/keys/dcc \\
        --out lists revoked.txt
    """
    if len(country) != 2 or not (country.isascii() and country.isupper()):
        raise click.UsageError(f"--country is {country}: expected two capital letters, as in VN")
    kind = HandleKind(kind_name.upper())
    if out.is_dir() and any(out.iterdir()):
        raise OperatorError(f"{out} has files: name a new or an empty folder")
    kid = None if signer is None else _version(client, signer).kid
    entries = sorted(set(_entries(file, kind, country)))
    if not entries:
        raise OperatorError("there is no certificate to revoke")
    parts = [entries[at : at + MAX_ENTRIES] for at in range(0, len(entries), MAX_ENTRIES)]
    batches = [revocation_batch(country, kid, expires, kind, part) for part in parts]
    with new_folder(out):
        signed = client.sign(key, Format.CMS, batches)
        return [
            {**_write(out, number, result, batch), "handles": len(part)}
            for number, (result, batch, part) in enumerate(
                zip(signed, batches, parts, strict=True), 1
            )
        ]


def _write(out: Path, number: int, result: ItemResult, batch: bytes) -> dict[str, object]:
    """Writes a signed list and its JSON; returns what is said of it. Raises OperatorError."""
    if result.error is not None:
        raise OperatorError(f"list {number} was not signed: {result.error.message}")
    path = out / f"batch-{number:04}"
    write_file(path.with_suffix(".json"), batch)
    write_file(path.with_suffix(".p7m"), with_content(result.signature, batch))
    return {"file": str(path.with_suffix(".p7m")), "key_version": result.key_version}


def _version(client: SignerClient, name: str) -> KeyVersion:
    if "/versions/" in name:
        return client.get_key_version(name)
    primary = client.get_key(name).primary
    if primary is None:
        raise OperatorError(f"{name} has no active version: name the one that signed")
    return primary


def _entries(file: Iterable[bytes], kind: HandleKind, country: str) -> Iterator[bytes]:
    """Yields the handle of each line; raises OperatorError, which names the line."""
    for number, line in enumerate(file, 1):
        content = line.strip()
        if not content:
            continue
        try:
            yield _entry(content, kind, country)
        except (MessageError, UnicodeDecodeError) as error:
            raise OperatorError(f"line {number}: {error}") from None


def _entry(content: bytes, kind: HandleKind, country: str) -> bytes:
    if content.startswith(_TEXT):
        found = getattr(handles_of_text(content), HANDLES[kind])
        if not any(found):
            raise MessageError("its certificate has no UVCI")
        return bytes(found)
    if kind is HandleKind.SIGNATURE:
        raise MessageError("a handle of the kind SIGNATURE needs the text of the certificate")
    uvci = content.decode()
    return handle((country + uvci if kind is HandleKind.COUNTRYCODEUCI else uvci).encode())
