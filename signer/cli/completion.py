"""``signer completion``, and what a shell completes by asking an appliance."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from signer.cli.connection import client_file_of, client_is_from_environment, connect
from signer.cli.output import say
from signer.client import OVER, SignerClient

SHELLS = ("bash", "fish", "zsh")
_SECONDS = 3.0
"""How long a person who pressed Tab waits for one answer."""

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS, case_sensitive=False))
def completion(*, shell: str) -> None:
    """Prints the script with which a shell completes `signer` commands.

    It also completes names of keys, ids of facilities and ids of operations, where --client,
    --config or SIGNER_CLIENT says which appliance to ask. Install it once, for new shells:

    \b
      signer completion bash > ~/.local/share/bash-completion/completions/signer
      signer completion zsh > "${fpath[1]}/_signer"
      signer completion fish > ~/.config/fish/completions/signer.fish

    \b
    Or for this shell alone:
      eval "$(signer completion bash)"
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"{shell} is not supported")
    root = click.get_current_context().find_root().command
    say(made(root, {}, "signer", "_SIGNER_COMPLETE").source())


def _asking(ask: Callable[[SignerClient], Iterable[str]]) -> Complete:
    """Returns a completion by what an appliance answers; nothing if it does not."""

    def complete(
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG001  click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        try:
            with connect(_client_file(ctx)) as client:
                found = sorted({text for text in ask(client) if text.startswith(incomplete)})
        except Exception:  # noqa: BLE001  nobody can read an error in a prompt
            return []
        return [CompletionItem(text) for text in found]

    return complete


def _client_file(ctx: click.Context) -> Path:
    """Returns the client file that the command would use."""
    client_file, config = ctx.params.get("client_file"), ctx.params.get("config_file")
    if config and (not client_file or client_is_from_environment(ctx)):
        return client_file_of(Path(config))
    return Path(client_file or os.environ.get("SIGNER_CLIENT", ""))


def _versions(client: SignerClient) -> list[str]:
    return [version.name for version in client.list_key_versions(timeout=_SECONDS)]


def _keys(client: SignerClient) -> list[str]:
    return [name.partition("/versions/")[0] for name in _versions(client)]


key_names = _asking(_keys)
version_names = _asking(_versions)
key_and_version_names = _asking(lambda client: [*_keys(client), *_versions(client)])
facility_ids = _asking(lambda client: [name.split("/")[1] for name in _keys(client)])
operation_ids = _asking(
    lambda client: [each.id for each in client.operations.list() if each.state not in OVER]
)
