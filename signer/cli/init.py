"""``signer init``: what a new appliance needs before its first start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from signer.cli.options import config_option
from signer.errors import ConfigError, OperatorError, Violation

if TYPE_CHECKING:
    from signer.config.models import Config, TokenConfig
    from signer.keys.registry import Registry


@click.command()
@config_option
@click.option(
    "--officer",
    "officer_files",
    metavar="CERT",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate (PEM) of one of the first officers; as many as an operation needs, or more.",
)
@click.option("--token", "label", metavar="LABEL", help="Needed where several are configured.")
@click.option(
    "--join",
    is_flag=True,
    help="A further appliance on a registry that has officers: begins its log and nothing else.",
)
def init(
    *, config_file: Path, officer_files: tuple[Path, ...], label: str | None, join: bool
) -> None:
    """Names the first officers, makes the audit key on the token, begins the audit log; once.

    From then on officers change keys, policy and officers, by operations that several
    of them sign. An officer's certificate has his principal as its one URI; its key
    signs operations. The policy that lies in the files is the first one in force.

    The public audit key is written into the log's directory. Give a copy to the
    auditor: it verifies every checkpoint and every proof.

    \b
      signer init --config /etc/signer/signer.yaml --officer an.pem --officer binh.pem
      signer init --config /etc/signer/second.yaml --join
    """
    from signer.audit.format.segments import KEY_FILE, list_segments
    from signer.clock import SystemClock
    from signer.config.loader import load_config
    from signer.config.policy_documents import read_policy
    from signer.daemon.audit_log import begin, refuse_second_log
    from signer.hsm.front.admin import open_admin
    from signer.keys.audit_key import ensure_audit_key
    from signer.keys.registry import Registry
    from signer.officers.records import OfficersRecord

    if join and officer_files:
        raise click.UsageError("--join takes the officers that the registry has")
    config = load_config(config_file)
    token = _token(config, label)
    policy = read_policy(config.policy)
    # An appliance from before there were officers has a log, and goes on with it.
    begun = bool(list_segments(config.audit.directory))
    create = not join and not begun
    with Registry.open(config.registry, create=create, migrate=True) as registry:
        if join or registry.state().officers:
            refuse_second_log(config.audit)
        if not join:
            _name_officers(registry, config, officer_files)
        state = registry.state()
        if not state.officers or state.policy is None:
            raise OperatorError("the registry has no officers yet: name them with --officer CERT")
        clock = SystemClock()
        with open_admin(token, config.state) as admin:
            key = ensure_audit_key(registry, admin, clock.now())
        if not begun:
            in_force = bytes.fromhex(state.policy)
            fields = OfficersRecord(state.officers, policy=in_force).to_fields()
            begin(config.audit, key, fields, clock)
    click.echo(f"officers: {', '.join(sorted(state.officers))}")
    click.echo(f"policy in force: {state.policy}")
    if state.policy != policy.policy.sha256:
        click.echo(f"the policy in {config.policy} is another one and is not in force", err=True)
    key_file = config.audit.directory / KEY_FILE
    click.echo(
        "the audit log goes on; the next start records the officers in it"
        if begun
        else f"the audit log is begun; its public key is {key_file}: give the auditor a copy"
    )


def _name_officers(registry: Registry, config: Config, files: tuple[Path, ...]) -> None:
    """Puts the first officers and the first policy into the registry; raises OperatorError."""
    from signer.config.policy_documents import read_policy
    from signer.officers.kinds.officer_change import first_officers

    if registry.state().officers:
        raise OperatorError(
            "the registry has officers already: they change themselves by an operation; a"
            " further appliance, or one whose first `signer init` was interrupted, begins its"
            " log with --join"
        )
    needed = max(config.operations.all_needed().values())
    officers = first_officers({str(file): file.read_bytes() for file in files})
    if len(officers) < needed:
        raise OperatorError(
            f"{len(officers)} officers are named, operations need {needed}: give --officer CERT"
            " for each"
        )
    policy, text = read_policy(config.policy)
    if problems := policy.officer_problems(officers):
        raise ConfigError(str(config.policy), [Violation("", each) for each in problems])
    with registry.writing() as write:
        write.set_officers(officers)
        write.put_policy(text)


def _token(config: Config, label: str | None) -> TokenConfig:
    tokens = {token.label: token for token in config.tokens}
    if label is None and len(tokens) == 1:
        [label] = tokens
    if label is None or label not in tokens:
        raise OperatorError(f"name one of the configured tokens with --token: {', '.join(tokens)}")
    return tokens[label]
