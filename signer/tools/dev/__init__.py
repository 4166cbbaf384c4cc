"""Creates a development appliance in one folder: token, PKI, configuration, policy, keys.

Every step finds what an earlier run created: a second run changes nothing, and an interrupted
run is completed. Only for development: every user who can read the folder can sign.
"""

import json
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from signer.audit.format.segments import list_segments
from signer.clock import SystemClock
from signer.config.models import Config, load_config
from signer.config.policy_documents import read_policy
from signer.daemon.audit_log import audit_key, begin, ensure_audit_key
from signer.errors import OperatorError
from signer.files import SECRET, replace_file
from signer.hsm.front.admin import open_admin
from signer.key_index import KeyIndex
from signer.keys.lifecycle import NewKey, TokenAdmin, create_key
from signer.keys.registry import Registry
from signer.keys.writing import Change
from signer.model import Storage, WrappingKey
from signer.officers.kinds.officer_change import first_officers
from signer.policy.rules import Policy
from signer.tools.dev import key_plan as plan
from signer.tools.dev import pki, second_token, softhsm, texts
from signer.x509 import certified, public_key_pem

_WRAPPING_KEY = "development"  # the id of the wrapping key
_PORTS = range(20_000, 26_000)  # below those of outgoing connections
Progress = Callable[[int, int], None]
"""Called with the number of keys created so far and their total."""


def provision(
    directory: Path,
    *,
    facilities: int = 0,
    workers: int | None = None,
    tokens: int | None = None,
    storage: str | None = None,
    progress: Progress = lambda _done, _of: None,
) -> dict[str, Any]:
    """Provisions ``directory`` as far as that is not done yet; returns the content of dev.json.

    ``facilities`` more facilities are for load tests, never fewer than an earlier run created.
    ``workers``, of each token, ``tokens``, 1 or 2, and ``storage``, token or wrapped, are kept
    where None. Raises OperatorError, also if the folder contains other files or its token is not
    in SoftHSM.
    """
    directory = directory.resolve()
    _refuse_foreign(directory)
    for folder in (directory, *(directory / name for name in ("token", "pki", "state"))):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(directory / "softhsm2.conf", texts.SOFTHSM_CONF.format(tokens=directory / "token"))
    config = _configuration(directory, workers, tokens)
    signer_authority = _pki(directory / "pki")
    with Registry.open(config.registry, create=True, migrate=True) as registry:
        before = registry.snapshot()
        facilities = max(facilities, len(before.names(f"facilities/{plan.LOAD_PREFIX}")))
        keys = plan.dev_keys(facilities)
        _policy(directory / "policy", facilities, storage)
        policy, text = read_policy(config.policy)
        _make_keys(registry, config, policy, keys, progress)
        _certify(registry, keys, signer_authority)
        _officers(registry, directory / "pki")
        if registry.state().policy != policy.sha256:  # `signer serve` serves this folder too
            with registry.writing() as write:
                write.put_policy(text)
        _make_audit_key(registry, config)
        if len(config.tokens) > 1:
            second_token.copy_keys(directory, config, registry)
        _begin_log(registry, config)
        index = registry.snapshot()
    for client in plan.CLIENTS:
        client_file = texts.CLIENT.format(port=config.listen.port, client=client)
        replace_file(directory / f"client-{client}.yaml", client_file)
    described = _describe(directory, config, keys, index)
    replace_file(directory / "dev.json", json.dumps(described, indent=2) + "\n")
    return described


def slow_file(directory: Path) -> Path:
    """Returns the configuration with a slow HSM, which ``slow_configuration`` writes."""
    return directory.resolve() / "signer-slow.yaml"


def slow_configuration(directory: Path, milliseconds: float, shim: Path) -> Path:
    """Writes ``slow_file``, which is signer.yaml with a slow HSM; returns its path.

    Every call of PKCS#11 takes so many milliseconds longer, as over a network. Raises
    OperatorError if ``shim``, the library that does that, is missing.
    """
    if not shim.is_file():
        raise OperatorError(f"{shim} is missing: `make shim` compiles tests/fault/shim.c")
    directory = directory.resolve()
    slow = texts.with_slow_module(
        (directory / "signer.yaml").read_text(),
        shim.resolve(),
        load_config(directory / "signer.yaml").tokens[0].module,  # of both tokens
        directory / "state" / "shim",
        milliseconds,
    )
    replace_file(slow_file(directory), slow)
    return slow_file(directory)


def _refuse_foreign(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise OperatorError(f"{directory} is a file; signer dev needs a folder")
    marked = (directory / "softhsm2.conf").exists()
    if directory.exists() and not marked and any(directory.iterdir()):
        raise OperatorError(f"{directory} contains other files: choose an empty or a new folder")


def _configuration(directory: Path, workers: int | None, tokens: int | None) -> Config:
    """Returns the configuration, and creates it and the token it names if they are absent."""
    path, softhsm_conf = directory / "signer.yaml", directory / "softhsm2.conf"
    if not path.exists():
        module = softhsm.find_module()
        serial = softhsm.find_token(module, softhsm_conf) or _new_token(directory, module)
        port, metrics_port = reserve_ports()
        text = texts.CONFIGURATION.format(
            port=port,
            metrics_port=metrics_port,
            label=softhsm.LABEL,
            serial=serial,
            module=module,
            workers=workers or 2,
        )
        replace_file(path, text)
    elif workers is not None:
        replace_file(path, texts.with_workers(path.read_text(), workers))
    config = load_config(path)
    labels = [token.label for token in config.tokens]
    if tokens == 1 and len(labels) > 1:
        raise OperatorError(f"{path} has two tokens: start again in another folder for one")
    if tokens == 2 and labels == [softhsm.LABEL]:
        second_token.add_to_configuration(path)
        config = load_config(path)
    _refuse_other_tokens(config, softhsm_conf)
    return config


def _new_token(directory: Path, module: Path) -> str:
    pin = secrets.token_hex(16)
    replace_file(directory / "pin", pin + "\n", SECRET)
    # The security officer's PIN resets a lost user PIN; a development token is created anew.
    return softhsm.init_token(
        module, directory / "softhsm2.conf", pin, so_pin=secrets.token_hex(16)
    )


def _refuse_other_tokens(config: Config, softhsm_conf: Path) -> None:
    ours = [softhsm.LABEL, second_token.LABEL]
    if [token.label for token in config.tokens] not in (ours[:1], ours):
        raise OperatorError(
            f"signer dev uses only its own tokens {' and '.join(ours)}: serve a configuration with"
            " other tokens by `signer serve`"
        )
    token = config.tokens[0]
    if softhsm.find_token(token.module, softhsm_conf) != token.serial:
        raise OperatorError(
            f"the token of {softhsm_conf.parent} and its keys are missing: delete the folder and"
            " start again"
        )


def reserve_ports(among: range = _PORTS) -> tuple[int, int]:
    """Returns two free ports of 127.0.0.1.

    They stay bound while this process runs, so that no other one gets them before the appliance
    listens, or between its end and its next start. A server that allows the reuse of its address,
    as the daemon does, listens there all the same.
    """
    found: list[int] = []
    while len(found) < 2:
        port = among[secrets.randbelow(len(among))]
        with socket.socket() as reserved:
            try:
                reserved.bind(("127.0.0.1", port))
            except OSError:
                continue
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.detach()  # open until the process ends
        found.append(port)
    return found[0], found[1]


def _pki(folder: Path) -> pki.Authority:
    """Creates certificates for server and clients; returns the CA of signing keys."""
    pki.server(folder, pki.authority(folder, "ca", "Signer development servers"))
    clients = pki.authority(folder, "client-ca", "Signer development clients")
    for name in plan.CLIENTS:
        pki.client(folder, clients, name, plan.principal(name))
    return pki.authority(folder, "dcc-ca", "Signer development health certificates")


def _make_keys(
    registry: Registry, config: Config, policy: Policy, keys: list[plan.DevKey], progress: Progress
) -> None:
    before = registry.snapshot()
    missing = [
        NewKey(key.name, key.algorithm, key.bits, _wrapping_key(key, policy))
        for key in keys
        if not before.versions(key.name)
    ]
    if not missing:
        return
    with open_admin(config.tokens[0], config.state) as admin:
        if any(new.wrapping_key for new in missing):
            _make_wrapping_key(registry, admin)
        for done, new in enumerate(missing, 1):
            create_key(registry, admin, new, SystemClock().now())
            progress(done, len(missing))


def _wrapping_key(key: plan.DevKey, policy: Policy) -> str:
    """Returns the id of the wrapping key for a key, empty if it stays on the token."""
    terms = policy.terms_of(key.name)
    return _WRAPPING_KEY if terms is not None and terms.storage == Storage.WRAPPED else ""


def _make_wrapping_key(registry: Registry, admin: TokenAdmin) -> None:
    """Creates the wrapping key, unless an earlier run did; a real one is made by officers."""
    if registry.state().wrapping_keys:
        return
    admin.make_wrapping_key(_WRAPPING_KEY)
    with registry.writing() as write:
        write.add_wrapping_key(WrappingKey(_WRAPPING_KEY, admin.token, SystemClock().now()))


def _make_audit_key(registry: Registry, config: Config) -> None:
    """Creates the audit key, unless an earlier run did."""
    if not list_segments(config.audit.directory):
        with open_admin(config.tokens[0], config.state) as admin:
            ensure_audit_key(registry, admin, SystemClock().now())


def _begin_log(registry: Registry, config: Config) -> None:
    """Creates the log, unless an earlier run did."""
    if not list_segments(config.audit.directory):
        now = SystemClock().now()
        key = audit_key(registry, now)
        begin(config.audit, key, registry.state(), SystemClock(), development=True)


def _officers(registry: Registry, folder: Path) -> None:
    """Registers the two officers, unless there are officers already."""
    if not registry.state().officers:
        names = [f"{name}.pem" for name in plan.OFFICERS]
        found = first_officers({name: (folder / name).read_bytes() for name in names})
        with registry.writing() as write:
            write.set_officers(found)


def _certify(registry: Registry, keys: list[plan.DevKey], authority: pki.Authority) -> None:
    index, now = registry.snapshot(), SystemClock().now()
    for key in keys:
        version = index.primary(key.name, now)
        if key.purpose and version is not None and version.certificate is None:
            usage = pki.USAGES[key.purpose]
            certificate = pki.signing_certificate(authority, version.spki, str(key.name), usage)
            with registry.writing() as write:
                write.change([Change(version, certified(version, certificate, now))])


def _policy(folder: Path, facilities: int, storage: str | None) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / "policy.yaml"
    if not file.exists():
        replace_file(file, texts.policy(storage or Storage.TOKEN))
    elif storage is not None and f"    storage: {storage}\n" not in file.read_text():
        raise OperatorError(
            f"{file} has another storage than {storage}: change it there for keys that are made"
            " from now on, or start again in another folder"
        )
    if facilities:
        replace_file(folder / "load.yaml", texts.load_policy(facilities))


def _describe(
    directory: Path, config: Config, keys: list[plan.DevKey], index: KeyIndex
) -> dict[str, Any]:
    """Returns the content of dev.json; writes the PEM files it names."""
    certificates = directory / "pki"
    return {
        "address": str(config.listen),
        "server_name": pki.SERVER_NAME,
        "metrics": f"http://{config.metrics}",
        "ca": str(certificates / "ca.pem"),
        "config": str(directory / "signer.yaml"),
        "clients": {
            name: {
                "cert": str(certificates / f"{name}.pem"),
                "key": str(certificates / f"{name}.key"),
                "principal": plan.principal(name),
            }
            for name in plan.CLIENTS
        },
        "keys": [_describe_key(directory / "keys", key, index) for key in keys],
    }


def _describe_key(folder: Path, key: plan.DevKey, index: KeyIndex) -> dict[str, Any]:
    # If officers have stopped all its versions, the newest one is described.
    version = index.primary(key.name, SystemClock().now()) or index.versions(key.name)[-1]
    folder /= key.name.facility
    folder.mkdir(parents=True, exist_ok=True)
    public_key, certificate = (
        folder / f"{key.name.key}.{kind}.pem" for kind in ("public", "certificate")
    )
    replace_file(public_key, public_key_pem(version.spki))
    if version.certificate is not None:
        pem = load_der_x509_certificate(version.certificate).public_bytes(Encoding.PEM)
        replace_file(certificate, pem)
    return {
        "name": str(key.name),
        "algorithm": key.algorithm.value,
        "formats": [format_.value for format_ in key.formats],
        "public_key": str(public_key),
        "certificate": None if version.certificate is None else str(certificate),
    }
