"""What commands say of themselves, and what shells complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from signer.cli import completion
from signer.cli.main import cli

KEY = "facilities/01-001/keys/records"


def groups(command: click.Command, ctx: click.Context) -> Iterator[tuple[click.Group, Any]]:
    """Yields every group of commands with its context."""
    if isinstance(command, click.Group):
        yield command, ctx
        for name in command.list_commands(ctx):
            nested = command.get_command(ctx, name)
            assert nested is not None
            yield from groups(nested, click.Context(nested, ctx, name))


def every() -> Iterator[tuple[click.Group, Any]]:
    return groups(cli, click.Context(cli, info_name="signer"))


def test_lists_of_commands_have_whole_sentences_in_80_columns() -> None:
    cut = []
    for _, ctx in every():
        words = [*ctx.command_path.split()[1:], "--help"]
        # Click leaves two columns of a terminal free, and none where a test runs it.
        text = CliRunner().invoke(cli, words, terminal_width=78).output
        listed = text.partition("Commands:\n")[2]
        cut += [line for line in listed.splitlines() if not line.endswith(".") or "..." in line]
        assert max(map(len, listed.splitlines())) <= 80
    assert not cut


def commands(command: click.Command, ctx: click.Context) -> Iterator[click.Context]:
    """Yields the context of every command and group."""
    yield ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            nested = command.get_command(ctx, name)
            assert nested is not None
            yield from commands(nested, click.Context(nested, ctx, name))


ALL = list(commands(cli, click.Context(cli, info_name="signer", **cli.context_settings)))


@pytest.mark.parametrize("ctx", ALL, ids=lambda ctx: ctx.command_path)
def test_help_fits_80_columns_and_has_an_example(ctx: click.Context) -> None:
    ctx.terminal_width = 80
    assert [line for line in ctx.get_help().splitlines() if len(line) > 80] == []
    assert "  signer " in (ctx.command.help or ""), "no example"


@pytest.mark.parametrize(
    "words", [("-h",), ("keys", "-h"), ("operations", "propose", "clock", "-h")]
)
def test_h_is_help(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*words])
    assert done.exit_code == 0
    assert done.output.startswith("Usage: ")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("operatoins", "list"), "operations"),
        (("operations", "aprove"), "approve"),
        (("sign", "--fromat", "JWS"), "--format"),
    ],
)
def test_what_was_mistyped_is_suggested(words: tuple[str, ...], meant: str) -> None:
    done = CliRunner().invoke(cli, list(words))
    assert done.exit_code == 2
    assert meant in done.output.partition("Did you mean")[2]


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["version"], "--version"),
        (["status"], "signer health"),
        (["help"], "--help"),
        (["policy", "read"], "signer policy get"),
        (["seal"], "signer keys suspend everything"),
        (["keys", "create"], "signer operations propose create-key"),
        (["keys", "revoke"], "signer keys compromise"),
        (["keys", "resume"], "signer operations propose resume"),
        (["operations", "rotate"], "signer keys rotate"),
        (["operations", "propose", "rotate"], "signer keys rotate"),
    ],
)
def test_what_other_products_call_otherwise_is_told(words: list[str], instead: str) -> None:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert instead in done.output.partition(f"No such command '{words[-1]}': use ")[2]


def test_choices_may_be_in_any_case() -> None:
    strict = [
        f"{ctx.command_path} {name} {parameter.name}"
        for group, ctx in every()
        for name in group.list_commands(ctx)
        for parameter in getattr(group.get_command(ctx, name), "params", [])
        if isinstance(parameter.type, click.Choice) and parameter.type.case_sensitive
    ]
    assert not strict


# --- completion -------------------------------------------------------------------------------


def completed(words: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns what bash would get for a line; its last word is not complete."""
    monkeypatch.setenv("_SIGNER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"signer {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
    done = CliRunner().invoke(cli, prog_name="signer", complete_var="_SIGNER_COMPLETE")
    return [line.partition(",")[2] for line in done.output.splitlines() if line]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_shell_has_a_script(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell.upper()])
    assert done.exit_code == 0
    assert f"_SIGNER_COMPLETE={shell}_complete" in done.output


class PlayedClient:
    """An appliance with one key, and an operation in each of two states."""

    def list_key_versions(self, *, timeout: float) -> list[Any]:
        assert timeout <= 5
        return [SimpleNamespace(name=f"{KEY}/versions/{number}") for number in (1, 2)]

    @property
    def operations(self) -> Any:
        found = [SimpleNamespace(id="a1", state="PROPOSED"), SimpleNamespace(id="a2", state="DONE")]
        return SimpleNamespace(list=lambda: found)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("si", ["sign"]),
        ("operations show a", ["a1"]),
        ("operations approve a", ["a1"]),
        ("keys requests a", ["a1"]),
        ("operations propose deactivate fac", [f"{KEY}/versions/1", f"{KEY}/versions/2"]),
        ("operations propose new-version fac", [KEY]),
        ("keys csr fac", [KEY, f"{KEY}/versions/1", f"{KEY}/versions/2"]),
        ("keys list --facility 0", ["01-001"]),
        ("sign --key fac", [KEY, f"{KEY}/versions/1", f"{KEY}/versions/2"]),
        ("sign --key nothing", []),
    ],
)
def test_names_and_ids_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, found: list[str]
) -> None:
    file = tmp_path / "client.yaml"
    file.touch()
    asked: list[Path] = []

    @contextmanager
    def connect(path: Path) -> Iterator[PlayedClient]:
        asked.append(path)
        yield PlayedClient()

    monkeypatch.setattr(completion, "connect", connect)
    monkeypatch.setenv("SIGNER_CLIENT", str(file))
    assert completed(words, monkeypatch) == found
    assert set(asked) <= {file}


def test_an_option_says_which_appliance_completes_and_beats_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("signer.yaml", "mine.yaml", "environment.yaml"):
        (tmp_path / name).touch()
    asked: list[Path] = []

    @contextmanager
    def connect(path: Path) -> Iterator[PlayedClient]:
        asked.append(path)
        yield PlayedClient()

    monkeypatch.setattr(completion, "connect", connect)
    monkeypatch.setattr(completion, "client_file_of", lambda config: Path(f"client of {config}"))
    monkeypatch.setenv("SIGNER_CLIENT", "environment.yaml")
    assert completed("operations show --config signer.yaml a", monkeypatch) == ["a1"]
    assert completed("operations show --client mine.yaml a", monkeypatch) == ["a1"]
    assert completed("operations show a", monkeypatch) == ["a1"]
    assert list(map(str, asked)) == ["client of signer.yaml", "mine.yaml", "environment.yaml"]


def test_without_an_appliance_nothing_is_completed_and_nothing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNER_CLIENT", str(tmp_path / "absent"))
    assert completed("operations show ", monkeypatch) == []
