"""A second development token that holds the keys of the first, as a second HSM would.

SoftHSM has no cloning between tokens. Its token is a folder of files, so a copy of the folder,
under another label and serial number, is a token with the same keys, ids and PIN. It has a folder
and a configuration of its own, so that it can be taken away alone. Only for development.
"""

import hashlib
import shutil
from pathlib import Path

from signer.config.models import Config
from signer.errors import OperatorError
from signer.files import replace_file
from signer.keys.registry import Registry
from signer.model import AUDIT_KEY, KeyState, KeyVersion, Placement
from signer.tools.dev import softhsm, texts

LABEL = f"{softhsm.LABEL}-2"
_FOLDER, _CONF = "token-2", "softhsm2-2.conf"
_LABEL_BYTES = 32  # PKCS#11 pads labels with spaces to this length
_SERIAL_BYTES = 16


def add_to_configuration(path: Path) -> None:
    """Adds the second token to a configuration that ``signer dev`` wrote. Raises OperatorError."""
    text = path.read_text()
    head, token, first = text.partition(f"  - label: {softhsm.LABEL}\n")
    if not first.rstrip().endswith("SOFTHSM2_CONF: ./softhsm2.conf"):
        raise OperatorError(
            f"{path} was edited after its first token: add the token {LABEL} under `tokens` there"
        )
    serial = first.partition('serial: "')[2][:_SERIAL_BYTES]
    second = first.replace(serial, _serial(serial)).replace("softhsm2.conf", _CONF)
    replace_file(path, f"{head}{token}{first}  - label: {LABEL}\n{second}")


def copy_keys(directory: Path, config: Config, registry: Registry) -> None:
    """Copies the first token, and registers the copies of its keys; does nothing if that is done.

    Raises OperatorError.
    """
    versions = [*registry.snapshot(), *registry.versions(AUDIT_KEY)]
    missing = [version for version in versions if _lacks_copy(version)]
    wrapping = registry.state().wrapping_keys
    lacking = {key.id for key in wrapping} - {key.id for key in wrapping if key.token == LABEL}
    conf = directory / _CONF
    replace_file(conf, texts.SOFTHSM_CONF.format(tokens=directory / _FOLDER))
    if not missing and not lacking and (directory / _FOLDER).is_dir():
        return
    if any(version.token == LABEL for version in versions):
        raise OperatorError(
            f"keys were made on token {LABEL}, which a new copy of {softhsm.LABEL} would lose: make"
            f" keys on {softhsm.LABEL}, or start again in another folder"
        )
    first = next(token for token in config.tokens if token.label == softhsm.LABEL)
    _copy(directory / "token", directory / _FOLDER, first.serial or "")
    with registry.writing() as write:
        for version in missing:
            write.place(version, Placement(LABEL, version.cka_id))
        for key in wrapping:
            if key.id in lacking:
                write.add_wrapping_key(key._replace(token=LABEL))


def _lacks_copy(version: KeyVersion) -> bool:
    made_there = version.token == softhsm.LABEL and version.state is not KeyState.DESTROYED
    return made_there and version.wrapped is None and version.cka_id_on(LABEL) is None


def _copy(source: Path, target: Path, serial: str) -> None:
    [token] = [folder for folder in source.iterdir() if (folder / "token.object").is_file()]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    shutil.copytree(token, target / token.name)
    described = target / token.name / "token.object"
    content = described.read_bytes()
    label = softhsm.LABEL.encode().ljust(_LABEL_BYTES)
    if content.count(label) != 1 or content.count(serial.encode()) != 1:
        raise OperatorError(f"{described} is not as this program knows SoftHSM's files")
    content = content.replace(label, LABEL.encode().ljust(_LABEL_BYTES))
    described.write_bytes(content.replace(serial.encode(), _serial(serial).encode()))


def _serial(first: str) -> str:
    """Returns the second token's serial number."""
    return hashlib.sha256(first.encode()).hexdigest()[:_SERIAL_BYTES]
