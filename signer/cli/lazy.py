"""Groups whose commands are imported when they run: a list of commands imports none of them."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import click


class LazyGroup(click.Group):
    """A group of commands in modules of their own.

    ``summaries`` has the line of each command in the list of commands, ``modules`` where it is:
    the module of ``package`` that has the command as its member of that name. A command that
    ``modules`` does not name is in the module of its own name. ``elsewhere`` says what to use
    instead of names that commands have in other products.
    """

    def __init__(
        self,
        *arguments: Any,
        package: str,
        summaries: Mapping[str, str],
        modules: Mapping[str, str],
        elsewhere: Mapping[str, str] = MappingProxyType({}),
        **attributes: Any,
    ) -> None:
        super().__init__(*arguments, **attributes)
        self._package, self._summaries, self._modules = package, summaries, modules
        self._elsewhere = elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return sorted(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self._summaries:
            return None
        module = self._modules.get(cmd_name, cmd_name)
        command: click.Command = getattr(
            importlib.import_module(f"{self._package}.{module}"), cmd_name
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self._summaries.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests commands for a mistyped one, as click does where it knows them all."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            if instead := self._elsewhere.get(error.command_name):
                text = f"No such command {error.command_name!r}: use {instead}."
                raise click.UsageError(text, ctx) from None
            raise click.NoSuchCommand(error.command_name, None, self._summaries, ctx) from None
