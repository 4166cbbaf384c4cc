"""``signer init``, ``registry`` and ``token``: what an operator does on the appliance itself."""

from pathlib import Path

import click

from signer.audit.format.segments import KEY_FILE, list_segments
from signer.cli.audit.log_files import LogFiles, readable_errors
from signer.cli.measure_token import bench
from signer.cli.options import FILE, FOLDER, config_option, token_option
from signer.cli.output import say
from signer.clock import Clock, SystemClock
from signer.config.models import Config, load_config
from signer.config.policy_documents import PolicyText, read_policy
from signer.daemon.audit_log import begin, ensure_audit_key, refuse_second_log
from signer.daemon.joining import check_registry
from signer.errors import ConfigError, OperatorError, Violation
from signer.hsm.front.admin import open_admin
from signer.hsm.latch import release
from signer.keys.database import connect, explained, version_of
from signer.keys.registry import Registry, RegistryState
from signer.officers.keys_record import Joined
from signer.officers.kinds.officer_change import first_officers
from signer.officers.records import MAX_REASON
from signer.officers.validity import Validity
from signer.text import count, utc


@click.command()
@config_option
@click.option(
    "--officer",
    "officer_files",
    metavar="CERT",
    multiple=True,
    type=FILE,
    help="Certificate (PEM) of one of the first officers; as many as an operation needs, or more.",
)
@token_option
@click.option(
    "--join",
    is_flag=True,
    help="For a further appliance on a registry that has officers: only begins its log. Needs"
    " --log or --without-log.",
)
@click.option(
    "--log",
    "log_directory",
    metavar="DIR",
    type=FOLDER,
    help="With --join: a copy of the log of an appliance that was there before. It must account for"
    " all that is in the registry.",
)
@click.option(
    "--without-log",
    metavar="REASON",
    help="With --join: why no log can be given. The registry is taken as it is, and the reason is"
    " recorded.",
)
def init(
    *,
    config_file: Path,
    officer_files: tuple[Path, ...],
    token: str,
    join: bool,
    log_directory: Path | None,
    without_log: str | None,
) -> None:
    """Names the first officers, creates the audit key on the token, starts the audit log; once.

    From then on officers change keys, policy and officers, by operations that several
    of them sign. An officer's certificate has the principal as its only URI; its key
    signs operations. The policy in the files is the first one in force.

    A further appliance joins: the log of an earlier one must account for all that is in the
    registry, or an edited copy of it would be taken as given. If no log is left, or none has a
    checkpoint yet, give the reason: `signer audit verify` reports it to auditors.

    The public audit key is written into the log's directory. Give a copy to the
    auditor: it verifies every checkpoint and every proof.

    \b
      signer init --config /etc/signer/signer.yaml --officer an.pem --officer \\
        binh.pem
      signer init --config /etc/signer/second.yaml --join --log /mnt/first/audit
    """
    _check_options(officer_files, log_directory, without_log, join=join)
    config = load_config(config_file)
    chosen = config.token(token)
    policy = read_policy(config.policy)
    # An appliance from before there were officers has a log, which it continues.
    begun = bool(list_segments(config.audit.directory))
    with Registry.open(config.registry, create=not (join or begun), migrate=True) as registry:
        if join or registry.state().officers:
            refuse_second_log(config.audit)
        if not join:
            _name_officers(registry, config, policy, officer_files)
        state = registry.state()
        if not state.officers or state.policy is None:
            raise OperatorError("the registry has no officers: name them with --officer CERT")
        clock = SystemClock()
        joined = _joined(
            registry, state, config, clock, directory=log_directory, reason=without_log or ""
        )
        with open_admin(chosen, config.state) as admin:
            key = ensure_audit_key(registry, admin, clock.now())
        if not begun:
            begin(config.audit, key, state, clock, development=False, joined=joined)
    say(f"officers: {', '.join(sorted(state.officers))}")
    for who, end in Validity.of(state.officers, clock.now()).ending:
        say(f"the certificate of {who} ends soon: {utc(end)}", err=True)
    say(f"policy in force: {state.policy}")
    if state.policy != policy.policy.sha256:
        say(f"the policy in {config.policy} is a different one and not in force", err=True)
    if begun:
        say("the audit log continues; the next start records the officers in it")
    else:
        key_file = config.audit.directory / KEY_FILE
        say(f"the audit log was begun; its public key is {key_file}: give the auditor a copy")


def _check_options(
    officer_files: tuple[Path, ...],
    log_directory: Path | None,
    without_log: str | None,
    *,
    join: bool,
) -> None:
    if join and officer_files:
        raise click.UsageError("--join uses the officers in the registry: omit --officer")
    given = [log_directory is not None, without_log is not None]
    if any(given) and not join:
        raise click.UsageError("--log and --without-log go with --join")
    if join and sum(given) != 1:
        raise click.UsageError(
            "--join compares the registry with the log of an appliance that was there before: give"
            ' a copy of it with --log DIR. If there is none, say why with --without-log "REASON":'
            " then nothing is compared, and the reason is recorded in the new log"
        )
    if without_log is not None and not (without_log.strip() and len(without_log) <= MAX_REASON):
        raise click.UsageError(f"--without-log: say why, in 1 to {MAX_REASON} characters")


def _joined(
    registry: Registry,
    state: RegistryState,
    config: Config,
    clock: Clock,
    *,
    directory: Path | None,
    reason: str,
) -> Joined | None:
    """Compares the registry with another appliance's log, if there is one; raises OperatorError.

    Returns what the new log says of that; None for the first appliance.
    """
    if directory is None:
        if not reason:
            return None
        say(f"the registry is taken as it is, compared with no log: {reason}", err=True)
        return Joined(reason=reason)
    with readable_errors():
        log = LogFiles(directory, directory / KEY_FILE)
        origin = log.origin()
        checkpoints, problems = log.checkpoints((), origin)
        if not checkpoints:
            problems.append(f"{directory} has no checkpoint: it is not signed")
        if problems:
            raise OperatorError(problems[0])
        needed = config.operations.all_needed()
        made = check_registry(
            registry, state, directory, origin, checkpoints, clock=clock, needed=needed
        )
    say(f"the log of {origin} accounts for the registry, in {count(made.records, 'record')}")
    return made


def _name_officers(
    registry: Registry, config: Config, policy: PolicyText, files: tuple[Path, ...]
) -> None:
    """Puts the first officers and the first policy into the registry; raises OperatorError."""
    if registry.state().officers:
        raise OperatorError(
            "the registry has officers already: change them by an operation; a"
            " further appliance, or one whose first `signer init` was interrupted, begins its"
            " log with --join and --log or --without-log"
        )
    needed = max(config.operations.all_needed().values())
    officers = first_officers({str(file): file.read_bytes() for file in files})
    if len(officers) < needed:
        raise OperatorError(
            f"{count(len(officers), 'officer is', 'officers are')} named, but operations need"
            f" {needed}: give --officer CERT for each"
        )
    if problems := policy.policy.officer_problems(officers):
        raise ConfigError(str(config.policy), [Violation("", problem) for problem in problems])
    with registry.writing() as write:
        write.set_officers(officers)
        write.put_policy(policy.text)


@click.group()
def registry() -> None:
    """Manages the registry: the database of keys, officers and operations.

    \b
      signer registry migrate --config /etc/signer/signer.yaml
    """


@registry.command(short_help="Updates the registry to the schema of this release.")
@config_option
def migrate(*, config_file: Path) -> None:
    """Updates the registry of an older release to the schema of this release.

    Stop the daemon first, and make a backup: an older release cannot read the registry
    afterwards. Either all of it is changed, or nothing.

    \b
      signer registry migrate --config /etc/signer/signer.yaml
    """
    url = load_config(config_file).registry
    before = _schema(url)
    with Registry.open(url, migrate=True):
        after = _schema(url)
    if before == after:
        say(f"the schema of the registry is {after} already: there was nothing to do")
    else:
        say(f"the schema of the registry was {before} and is now {after}")


def _schema(url: str) -> str:
    """Returns the schema's version; raises OperatorError."""
    engine = connect(url, create=False)
    try:
        with explained("read"), engine.connect() as connection:
            return version_of(connection) or "empty"
    finally:
        engine.dispose()


@click.group()
def token() -> None:
    """Manages the tokens that hold the keys.

    \b
      signer token bench --config /etc/signer/signer.yaml --token signer
      signer token unlatch --config /etc/signer/signer.yaml --token signer
    """


@token.command(short_help="Allows one more attempt with the PIN.")
@config_option
@token_option
def unlatch(*, config_file: Path, token: str) -> None:
    """Allows one more attempt with the PIN, at the next start of a worker.

    A PIN that the token rejected is never tried again automatically: HSMs lock or
    erase themselves after a few wrong ones. Correct the PIN file first; a running
    daemon then logs in within seconds.

    \b
      signer token unlatch --config /etc/signer/signer.yaml --token signer
    """
    config = load_config(config_file)
    label = config.token(token).label
    latched = release(config.state, label)
    if latched is None:
        raise OperatorError(f"token {label}: no PIN was rejected, so there is nothing to do")
    if latched:
        say(f"token {label}: the PIN is tried once more at the next start of a worker")
    else:
        say(
            f"token {label}: no PIN is latched; workers try the one of the PIN file, also if the"
            " token says that few attempts are left"
        )


token.add_command(bench)
