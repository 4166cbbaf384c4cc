"""The Dockerfile, as far as it can be judged without carrying it out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from signer.cli.main import cli
from signer.config.models import load_config
from tests.packaging.dockerfile import ROOT, STAGES

TEXT = (ROOT / "Dockerfile").read_text()
HADOLINT = Path(sys.executable).with_name("hadolint")


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HADOLINT, "-"], input=text, capture_output=True, text=True, check=False, timeout=60
    )


def of(stage: str, word: str) -> list[str]:
    return [line.rest for line in STAGES[stage] if line.word == word]


def all_of(stage: str, word: str) -> list[str]:
    """The same, and of what the stage comes from."""
    source = STAGES[stage][0].rest.split()[0]
    return [*(all_of(source, word) if source in STAGES else []), *of(stage, word)]


def test_hadolint_finds_nothing() -> None:
    done = hadolint(TEXT)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something() -> None:
    assert (
        hadolint(TEXT.replace("python:3.11-slim-bookworm AS base", "python AS base")).returncode
        != 0
    )


def test_each_rule_that_is_ignored_has_its_reason_above() -> None:
    lines = TEXT.splitlines()
    ignored = [n for n, line in enumerate(lines) if "hadolint ignore=" in line]
    assert ignored
    for number in ignored:
        rule = lines[number].partition("=")[2]
        assert lines[number - 1].startswith(f"# {rule} "), rule


def test_it_is_built_of_one_base_by_its_tag() -> None:
    """A tag moves: the guide says so, and lists it among what is weaker."""
    bases = {lines[0].rest.split()[0] for lines in STAGES.values()} - set(STAGES)
    [base] = bases
    assert re.fullmatch(r"python:3\.\d+-slim-bookworm", base)
    assert list(STAGES)[-1] == "appliance", "the last stage is what is built by default"


def test_packages_come_from_the_lock_alone() -> None:
    pip = [command for command in of("build", "RUN") if "pip " in command]
    assert "--require-hashes" in pip[0]
    assert "--requirement requirements.lock" in pip[0]
    for command in pip[1:]:
        assert "--no-index --find-links wheels" in command
    for stage in ("base", "appliance"):
        assert not [command for command in of(stage, "RUN") if "pip" in command or "apt" in command]


def test_the_guide_installs_what_the_image_has() -> None:
    guide = (ROOT / "docs" / "packaging.md").read_text().replace("\\\n", " ")
    for command in of("build", "RUN"):
        arguments = re.split(r"pip (?:--python \S+ )?", command)[-1]
        assert " ".join(arguments.split()) in " ".join(guide.split())


@pytest.mark.parametrize("stage", ["softhsm", "appliance"])
def test_it_runs_as_nobody_and_stops_as_asked(stage: str) -> None:
    assert all_of(stage, "USER")[-1] == "10001:10001"
    assert all_of(stage, "STOPSIGNAL") == ["SIGTERM"]
    assert all_of(stage, "VOLUME") == ["/var/lib/signer"]


@pytest.mark.parametrize("stage", ["softhsm", "appliance"])
def test_what_it_runs_are_commands_with_their_options(stage: str) -> None:
    [entrypoint] = all_of(stage, "ENTRYPOINT")
    assert json.loads(entrypoint) == ["signer"]
    [command], [health] = of(stage, "CMD"), of(stage, "HEALTHCHECK")
    for words in (json.loads(command), json.loads(health.partition(" CMD ")[2])[1:]):
        group: click.Command = cli
        context = click.Context(cli)
        while isinstance(group, click.Group):
            found = group.get_command(context, words.pop(0))
            assert found is not None
            group = found
        group.make_context(str(group.name), words, resilient_parsing=True)


def test_its_ports_are_those_of_the_configuration() -> None:
    config = load_config(ROOT / "config" / "systemd" / "signer.yaml")
    assert all_of("appliance", "EXPOSE") == [f"{config.listen.port} {config.metrics.port}"]
