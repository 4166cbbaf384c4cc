"""``signer policy get``, ``export``, ``diff``, ``propose``: the policy in force, and the next."""

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import click

from signer.cli.connection import ApplianceFile, connect, place_options
from signer.cli.operations.flow import LONG, confirm
from signer.cli.operations.propose import propose_policy as propose
from signer.cli.options import NEW_FOLDER, PATHS, yes_option
from signer.cli.output import explained, output, put, say
from signer.config.policy_files import (
    PolicyFile,
    policy_files,
    policy_text,
    read_files,
    write_policy_files,
)
from signer.errors import OperatorError
from signer.text import plain

__all__ = ["diff", "export", "get", "propose"]


def _in_force(appliance: ApplianceFile) -> bytes:
    """Returns the text of the policy in force. Raises OperatorError, ConfigError."""
    if appliance.on_machine:
        from signer.config.models import load_config  # needs packages of the server
        from signer.daemon.draft import policy_in_registry

        return policy_in_registry(load_config(appliance.path))
    with connect(appliance.path) as client:
        files = client.operations.policy(timeout=LONG)
    return policy_text([PolicyFile(name, content) for name, content in files.items()])


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _policy_value(text: bytes) -> Mapping[str, object]:
    files = {name: content.decode(errors="replace") for name, content in policy_files(text)}
    return {"policy_sha256": _sha256(text), "files": files}


def _print_policy(text: bytes) -> None:
    files = policy_files(text)
    for name, content in files:
        if len(files) > 1:
            say(f"# --- {plain(name)}")
        put(content if content.endswith(b"\n") else content + b"\n")
    say(f"in force: {_sha256(text)}", err=True)


@click.command(short_help="Prints the policy in force.")
@output(_policy_value, _print_policy)
@place_options
def get(*, appliance: ApplianceFile) -> bytes:
    """Prints the files of the policy in force, on stderr their SHA-256.

    With --client for officers, over the API; with --config on the appliance, from its registry.

    \b
      signer policy get --client officer-a.yaml
      signer policy get --config /etc/signer/signer.yaml --json \\
        | jq -r .policy_sha256
    """
    return _in_force(appliance)


class Exported(NamedTuple):
    """Which files of the policy in force a folder holds now."""

    policy_sha256: str
    folder: str
    files: list[str]


def _print_exported(exported: Exported) -> None:
    say(f"{exported.folder} holds the policy in force, {exported.policy_sha256}")
    for name in exported.files:
        say(f"  {plain(name)}")


@click.command(short_help="Writes the files of the policy in force into a folder.")
@click.option(
    "--in-force",
    "folder",
    metavar="DIR",
    type=NEW_FOLDER,
    required=True,
    help="The folder; it is made if it does not exist.",
)
@yes_option
@output(Exported._asdict, _print_exported)
@place_options
def export(*, appliance: ApplianceFile, folder: Path, yes: bool) -> Exported:
    """Writes the files of the policy in force into a folder, which then holds no other policy.

    Other files of a policy there are replaced or removed; on a terminal you are asked before.
    This also replaces a draft on the appliance by the policy in force.

    \b
      signer policy export --in-force policy --client officer-a.yaml
      signer policy export --in-force /var/lib/signer/policy \\
        --config /etc/signer/signer.yaml
    """
    text = _in_force(appliance)
    files = dict(policy_files(text))
    with explained(folder, "written"):
        folder.mkdir(exist_ok=True)
        there = {file.name: file.read_bytes() for file in sorted(folder.glob("*.yaml"))}
        lost = [name for name, content in there.items() if files.get(name) != content]
        if lost:
            say(f"{folder}: this replaces or removes {', '.join(map(plain, lost))}", err=True)
            confirm("Write the policy in force there?", yes=yes)
        write_policy_files(folder, text)
    return Exported(_sha256(text), str(folder), list(files))


class Differences(NamedTuple):
    """What differs between files and the policy in force: its rules, and its lines."""

    policy_sha256: str
    in_force_sha256: str
    rules: list[str]
    lines: list[str]


def _print_differences(found: Differences) -> None:
    if found.policy_sha256 == found.in_force_sha256:
        say(f"the files are the policy in force, {found.in_force_sha256}")
        return
    say(f"in force    {found.in_force_sha256}")
    say(f"the files   {found.policy_sha256}, a draft")
    say("what their rules change:")
    for line in found.rules:
        say(f"  {plain(line)}")
    say("what is written otherwise:")
    for line in found.lines:
        say(f"  {plain(line)}")


@click.command(short_help="Shows what differs between files and the policy in force.")
@click.argument("files", metavar="[FILES]...", type=PATHS, nargs=-1)
@output(Differences._asdict, _print_differences)
@place_options
def diff(*, appliance: ApplianceFile, files: tuple[Path, ...]) -> Differences:
    """Shows what differs between FILES and the policy in force: its rules, then its lines.

    FILES are a folder, or files. On the appliance (--config) they may be omitted: then its own
    files are compared. Files that are not a valid policy are refused, with all mistakes.

    \b
      signer policy diff policy --client officer-a.yaml
      signer policy diff --config /etc/signer/signer.yaml
    """
    if appliance.on_machine:
        return _compared_here(appliance.path, files)
    if not files:
        raise click.UsageError("give the FILES to compare: a folder, or files")
    text, old = policy_text(read_files(*files)), _in_force(appliance)
    if text == old:
        return _differences(text, old, [])
    arguments = {"policy_sha256": _sha256(text)}
    with connect(appliance.path) as client:
        answer = client.operations.prepare("policy", arguments, text, timeout=LONG)
    for problem in answer.problems:
        say(plain(problem), err=True)
    if answer.problems:
        raise OperatorError("this policy cannot be proposed, for the reasons above")
    return _differences(text, old, list(answer.difference))


def _compared_here(config_file: Path, files: tuple[Path, ...]) -> Differences:
    """Compares on the appliance, without the daemon."""
    from signer.config.models import load_config  # needs packages of the server
    from signer.config.policy_documents import read_policy_text
    from signer.daemon.draft import policy_in_registry
    from signer.policy.difference import difference

    config = load_config(config_file)
    text, old = policy_text(read_files(*(files or [config.policy]))), policy_in_registry(config)
    before, after = read_policy_text(old).policy, read_policy_text(text, "the draft").policy
    return _differences(text, old, difference(before, after))


def _differences(text: bytes, old: bytes, rules: list[str]) -> Differences:
    return Differences(_sha256(text), _sha256(old), rules, list(_lines(old, text)))


def _lines(old: bytes, new: bytes) -> Iterator[str]:
    """Yields the files that differ as a unified diff, without a line's end."""
    before, after = (
        {name: content.decode(errors="replace") for name, content in policy_files(text)}
        for text in (old, new)
    )
    for name in sorted({*before, *after}):
        yield from difflib.unified_diff(
            before.get(name, "").splitlines(),
            after.get(name, "").splitlines(),
            f"in force/{name}",
            f"draft/{name}",
            n=2,
            lineterm="",
        )
