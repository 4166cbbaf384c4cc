"""Groups of commands: what they suggest for other names, and some that import when they run."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import click


class CommandGroup(click.Group):
    """A group of commands. ``elsewhere`` says what to use instead of names of other products."""

    def __init__(
        self,
        *arguments: Any,
        elsewhere: Mapping[str, str] = MappingProxyType({}),
        **attributes: Any,
    ) -> None:
        super().__init__(*arguments, **attributes)
        self._elsewhere = elsewhere

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Says what to use instead of an unknown command, or suggests those with a like name."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            if instead := self._elsewhere.get(error.command_name):
                text = f"No such command {error.command_name!r}: use {instead}."
                raise click.UsageError(text, ctx) from None
            known = self.list_commands(ctx)
            raise click.NoSuchCommand(error.command_name, None, known, ctx) from None


class LazyGroup(CommandGroup):
    """A group of commands in modules of their own: a list of them imports none.

    ``summaries`` has the line of each command in the list of commands, ``modules`` where it is:
    the module of ``package`` that has the command as its member of that name. A command that
    ``modules`` does not name is in the module of its own name.
    """

    def __init__(
        self,
        *arguments: Any,
        package: str,
        summaries: Mapping[str, str],
        modules: Mapping[str, str],
        **attributes: Any,
    ) -> None:
        super().__init__(*arguments, **attributes)
        self._package, self._summaries, self._modules = package, summaries, modules

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
