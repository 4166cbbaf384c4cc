"""``signer keys``: makes keys in the HSM and shows them, on the appliance itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from signer.cli.options import config_option, json_option
from signer.clock import SystemClock
from signer.errors import OperatorError
from signer.model import Algorithm, KeyName, KeyVersion, parse_key_or_version

if TYPE_CHECKING:
    from signer.config import Config, TokenConfig
    from signer.keys.index import KeyIndex
    from signer.keys.registry import Registry

Target = tuple[KeyName, int | None]
"""A key, or one of its versions."""


class _KeyNameType(click.ParamType[KeyName]):
    name = "NAME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> KeyName:
        try:
            return KeyName.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _TargetType(click.ParamType[Target]):
    name = "NAME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Target:
        try:
            return parse_key_or_version(value)
        except ValueError as error:
            self.fail(f"{error}, or a version of it: .../versions/1", param, ctx)


@click.group()
def keys() -> None:
    """Makes keys in the HSM and shows them.

    These commands work on the appliance itself, with its configuration. Private
    keys are made inside the HSM and never leave it.

    \b
    A facility's key for records:
      signer keys create facilities/01-001/keys/records --algorithm ES256 --config signer.yaml

    \b
    A ministry's key with a certificate of an outside authority:
      signer keys create facilities/moh/keys/dcc --algorithm ES256 --config signer.yaml
      signer keys csr facilities/moh/keys/dcc --subject "CN=DCC 1,C=VN" --config signer.yaml > dcc.csr
      signer keys import-certificate facilities/moh/keys/dcc dcc.pem --config signer.yaml
    """  # noqa: D301, E501  click's \b; a command one can copy stands on one line


@keys.command()
@click.argument("name", type=_KeyNameType())
@click.option(
    "--algorithm",
    required=True,
    type=click.Choice([str(a) for a in Algorithm]),
    help="Fixed for the life of the key.",
)
@click.option("--bits", type=int, default=0, help="RSA only: 2048, 3072 or 4096.")
@click.option("--token", "label", metavar="LABEL", help="Which token; needed if there are several.")
@json_option
@config_option
def create(
    *, name: KeyName, algorithm: str, bits: int, label: str | None, as_json: bool, config_file: Path
) -> None:
    """Makes the key NAME with its first version, which may sign at once.

    A running daemon knows the key a second later. Whether anybody may use it is
    the policy's decision: see `signer policy explain`.

    \b
      signer keys create facilities/01-001/keys/records --algorithm ES256 --config signer.yaml
      signer keys create facilities/moh/keys/dcc-rsa --algorithm PS256 --bits 3072 --config signer.yaml
    """  # noqa: D301, E501  as above
    from signer.hsm.admin import open_admin
    from signer.keys.operations import NewKey, create_key

    config = _load(config_file)
    token = _token(config, label)
    with _registry(config, create=True) as registry, open_admin(token, config.state) as admin:
        new = NewKey(name, Algorithm(algorithm), bits)
        version = create_key(registry, admin, new, SystemClock().now())
    _print(describe(version), as_json, lambda: f"made {version.name} on token {version.token}")


@keys.command("list")
@click.option("--facility", metavar="ID", help="Only the keys of one facility.")
@json_option
@config_option
def list_keys(*, facility: str | None, as_json: bool, config_file: Path) -> None:
    """Lists all key versions in the order of their names; * marks those that sign for their key.

    \b
      signer keys list --config signer.yaml
      signer keys list --facility 01-001 --json --config signer.yaml
    """  # noqa: D301  as above
    with _registry(_load(config_file)) as registry:
        index = registry.snapshot()
    now = SystemClock().now()
    names = index.names(f"facilities/{facility}/" if facility else "")
    versions = [version for name in names for version in index.versions(name)]
    primary = {name: index.primary(name, now) for name in names}

    def table() -> str:
        lines = [f"  {'VERSION':<48} {'ALGORITHM':<9} {'STATE':<17} {'KID':<16} CERTIFICATE"]
        lines += [
            f"{'*' if v is primary[v.key] else ' '} {v.name:<48} {v.algorithm:<9} {v.state:<17}"
            f" {v.kid.hex()} {'yes' if v.certificate else 'no'}"
            for v in versions
        ]
        return "\n".join(lines)

    _print(
        [{**describe(v), "primary": v is primary[v.key]} for v in versions],
        as_json,
        table,
    )


@keys.command()
@click.argument("target", metavar="NAME", type=_TargetType())
@click.option("--pem", is_flag=True, help="Print only the public key, in PEM.")
@json_option
@config_option
def show(*, target: Target, pem: bool, as_json: bool, config_file: Path) -> None:
    """Shows one version: that of NAME, or the one that signs for the key NAME.

    \b
      signer keys show facilities/01-001/keys/records --config signer.yaml
      signer keys show facilities/01-001/keys/records/versions/1 --pem --config signer.yaml > key.pem
    """  # noqa: D301, E501  as above
    from signer.keys.certificates import public_key_pem

    with _registry(_load(config_file)) as registry:
        version = _find(registry.snapshot(), target)
    if pem:
        click.echo(public_key_pem(version.spki), nl=False)
        return
    described = describe(version)
    _print(described, as_json, lambda: "\n".join(_lines(described)))


@keys.command()
@click.argument("target", metavar="NAME", type=_TargetType())
@click.option("--subject", required=True, metavar="DN", help='As in "CN=DCC 1,O=Ministry,C=VN".')
@config_option
def csr(*, target: Target, subject: str, config_file: Path) -> None:
    """Prints a certification request (PKCS #10, PEM) signed by the key NAME in the HSM.

    \b
      signer keys csr facilities/moh/keys/dcc --subject "CN=DCC 1,C=VN" --config signer.yaml > dcc.csr
    """  # noqa: D301, E501  as above
    from signer.hsm.admin import open_admin
    from signer.keys.csr import make_request

    config = _load(config_file)
    with _registry(config) as registry:
        version = _find(registry.snapshot(), target)
    with open_admin(_token(config, version.token), config.state) as admin:
        click.echo(make_request(admin, version, subject), nl=False)


@keys.command("import-certificate")
@click.argument("target", metavar="NAME", type=_TargetType())
@click.argument(
    "file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--replace", is_flag=True, help="Allow FILE to take another certificate's place.")
@json_option
@config_option
def import_certificate(
    *, target: Target, file: Path, replace: bool, as_json: bool, config_file: Path
) -> None:
    """Stores the certificate in FILE (PEM or DER) with the key NAME.

    It must be for this key, valid now, for digital signatures, and no authority's.
    From then on its hash is the key id (kid) in COSE and HCERT messages.

    \b
      signer keys import-certificate facilities/moh/keys/dcc dcc.pem --config signer.yaml
    """  # noqa: D301  as above
    from signer.keys import operations

    with _registry(_load(config_file)) as registry:
        version = operations.import_certificate(
            registry,
            _find(registry.snapshot(), target),
            file.read_bytes(),
            SystemClock().now(),
            replaces=replace,
        )
    _print(
        describe(version),
        as_json,
        lambda: f"{version.name} has this certificate now; its kid is {version.kid.hex()}",
    )


def describe(version: KeyVersion) -> dict[str, Any]:
    """Returns what `--json` shows of a version: texts, times in ISO 8601 (UTC)."""
    from signer.keys.certificates import describe_certificate, fingerprint, public_key_pem

    return {
        "name": version.name,
        "algorithm": version.algorithm.value,
        "state": version.state.value,
        "token": version.token,
        "cka_id": version.cka_id.hex(),
        "created": _iso(version.created),
        "activate_at": _iso(version.activate_at),
        "sign_until": _iso(version.sign_until),
        "kid": version.kid.hex(),
        "thumbprint": version.thumbprint,
        "public_key_sha256": fingerprint(version.spki),
        "public_key": public_key_pem(version.spki),
        "certificate": version.certificate and describe_certificate(version.certificate),
    }


def _lines(described: dict[str, Any]) -> list[str]:
    """Lays out a description for people: one value a line, without PEM."""
    lines = []
    for label, value in described.items():
        if isinstance(value, dict):
            lines += [label, *(f"  {line}" for line in _lines(value))]
        elif label not in ("public_key", "pem"):
            shown = ", ".join(value) if isinstance(value, list) else value
            lines.append(f"{label.replace('_', ' '):<20} {shown or '-'}")
    return lines


def _iso(time: float | None) -> str | None:
    return None if time is None else datetime.fromtimestamp(time, UTC).isoformat()


def _print(value: object, as_json: bool, text: Callable[[], str]) -> None:
    click.echo(json.dumps(value, indent=2) if as_json else text())


def _load(path: Path) -> Config:
    from signer.config import load_config

    return load_config(path)


def _registry(config: Config, *, create: bool = False) -> Registry:
    from signer.keys.registry import Registry

    return Registry.open(config.registry, create=create, migrate=True)


def _token(config: Config, label: str | None) -> TokenConfig:
    """Returns the token of that label; without a label the only one there is."""
    labels = ", ".join(token.label for token in config.tokens)
    if label is None and len(config.tokens) > 1:
        raise click.UsageError(f"there are several tokens: say --token with one of {labels}")
    for token in config.tokens:
        if label in (None, token.label):
            return token
    raise OperatorError(f"the configuration has no token {label}; it has {labels}")


def _find(index: KeyIndex, target: Target) -> KeyVersion:
    """Returns the version named, or the key's primary, or its newest version."""
    name, number = target
    if number is not None:
        version = index.version(name, number)
    else:
        newest = index.versions(name)[-1:]
        version = index.primary(name, SystemClock().now()) or next(iter(newest), None)
    if version is None:
        wanted = str(name) if number is None else f"{name}/versions/{number}"
        raise OperatorError(f"the registry has no {wanted}; `signer keys list` shows what there is")
    return version
