"""Commands against the running appliance: what they print, and their exit codes."""

import base64
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from alembic.command import upgrade
from alembic.config import Config as AlembicConfig

from signer.cli.main import cli
from signer.errors import OperatorError
from signer.keys.registry import Registry
from tests.commands import Done, Run
from tests.integration import edge, outputs

MESSAGE_KEY = ("--key", edge.RECORDS, "--format", "MESSAGE")
JWS_KEY = ("--key", edge.RECORDS, "--format", "JWS")


@pytest.fixture
def config(appliance: Any) -> Path:
    return Path(appliance.dev["config"])


def commands(group: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            assert found is not None
            yield from commands(found, *path, name)


@pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
def test_every_command_has_help(run: Run, path: tuple[str, ...]) -> None:
    done = run(*path, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: {' '.join(('signer', *path))} ")
    assert len(done.out.splitlines()) > 5


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("check",),
        ("check", "--nonsense"),
        ("policy", "explain", "--config", "x"),
        ("top",),
        ("reload", "--client", "absent.yaml"),
        ("keys", "list"),
        ("keys", "show", "facilities/x"),
        ("operations", "propose", "create-key", "facilities/x"),
        ("operations", "approve", "x", "--client", "absent.yaml"),
        ("ceremony",),
        ("registry", "migrate"),
        ("sign", "--client", "absent.yaml"),
        ("token", "unlatch"),
        ("dev", "up"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_two(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err


# --- on the appliance -------------------------------------------------------------------------


def test_check(run: Run, config: Path) -> None:
    done = run("check", "--config", config)
    assert (done.code, done.err) == (0, "")
    assert f"{config} is in order" in done.out


def test_explain_says_what_the_server_does(
    run: Run, config: Path, appliance: Any, issuer: edge.Stubs
) -> None:
    """The same decision and the same rule, from the file and over the wire."""
    principal = appliance.dev["clients"]["issuer"]["principal"]
    question = ("policy", "explain", "--config", config, "--principal", principal, "--json")
    for key, name in (
        (edge.RECORDS, "JWS"),
        (edge.RECORDS, "DIGEST"),
        ("facilities/x/keys/y", "JWS"),
    ):
        done = run(*question, "--key", key, "--format", name)
        [decision] = json.loads(done.out)
        assert done.code == (0 if decision["allowed"] else 1)
        if decision["allowed"]:
            assert len(issuer.sign(key=key, format=f"FORMAT_{name}").signatures) == 1
            continue
        refusal = edge.refused(partial(issuer.sign, key=key, format=f"FORMAT_{name}"))
        assert refusal.reason == decision["reason"]
        assert refusal.metadata == {"rule": decision["rule"]}
        assert refusal.message == decision["message"]


def test_keys(run: Run, appliance: Any) -> None:
    for options in (
        ("--client", appliance.client_file("auditor")),
        ("--config", appliance.dev["config"]),
    ):
        listed = json.loads(run("keys", "list", *options, "--json").out)
        assert {key["name"] for key in listed} == {
            f"{key['name']}/versions/1" for key in appliance.dev["keys"]
        }
        shown = run("keys", "show", edge.RECORDS, *options, "--json")
        pem = Path(appliance.key("01-001/records")["public_key"]).read_text()
        assert json.loads(shown.out)["public_key"] == pem
        done = run("keys", "show", "facilities/01-001/keys/none", *options)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("signer: ")
    for command in (("list",), ("suspend", edge.RECORDS, "--reason", "x")):
        done = run("keys", *command, "--client", appliance.client_file("stranger"))
        assert (done.code, "PEER_UNKNOWN" in done.err) == (1, True)


def test_registry_migrate(run: Run, config: Path, tmp_path: Path) -> None:
    done = run("registry", "migrate", "--config", config)
    assert (done.code, done.err) == (0, "")
    assert "nothing to do" in done.out
    registry = tmp_path / "registry.sqlite"
    text = re.sub("(?m)^registry:.*$", f"registry: sqlite:///{registry}", config.read_text())
    old = config.with_name("signer-old.yaml")
    old.write_text(text)
    try:
        assert run("registry", "migrate", "--config", old).code == 1
        assert not registry.exists()
        first_schema(registry)
        with pytest.raises(OperatorError, match="signer registry migrate --config FILE"):
            Registry.open(f"sqlite:///{registry}")
        done = run("registry", "migrate", "--config", old)
        assert (done.code, done.err) == (0, "")
        assert "was 0001 and is now 0" in done.out
        Registry.open(f"sqlite:///{registry}").close()
    finally:
        old.unlink()


def first_schema(registry: Path) -> None:
    """Makes a registry as the first release did."""
    alembic = AlembicConfig()
    alembic.set_main_option("script_location", "signer.keys:migrations")
    alembic.set_main_option("path_separator", "os")
    engine = sa.create_engine(f"sqlite:///{registry}")
    with engine.begin() as connection:
        alembic.attributes["connection"] = connection
        upgrade(alembic, "0001")
    engine.dispose()


def test_unlatch(run: Run, make_appliance: Any) -> None:
    made = make_appliance(start=False)
    config = made.dev["config"]
    done = run("token", "unlatch", "--config", config)
    assert done.code == 0
    assert "no PIN is latched" in done.out
    done = run("token", "unlatch", "--config", config, "--token", "another")
    assert (done.code, done.out) == (1, "")
    assert "signer-dev" in done.err
    for latch in (made.dir / "state").glob("pin-*.json"):
        latch.unlink()
    assert run("token", "unlatch", "--config", config).code == 1
    # Nobody listens there.
    for command in ("health", "top", "reload"):
        done = run(command, "--config", config)
        assert (done.code, done.out) == (1, "")
        assert "UNAVAILABLE" in done.err


# --- over the wire ----------------------------------------------------------------------------


def test_health(run: Run, appliance: Any, config: Path) -> None:
    for option in (("--config", config), ("--client", appliance.client_file("stranger"))):
        assert run("health", *option) == Done(0, "SERVING\n", "")
        assert json.loads(run("health", *option, "--json").out) == {"status": "SERVING"}


def test_top(run: Run, config: Path, issuer: edge.Stubs) -> None:
    issuer.sign()
    done = run("top", "--config", config)
    assert (done.code, done.err) == (0, "")
    assert "ready" in done.out
    assert "01-001" in done.out

    def shown() -> Any:
        return json.loads(run("top", "--config", config, "--json", "--count", "1").out)

    assert shown()["ready"] is True
    [busiest] = shown()["busiest"]
    assert 1 <= busiest["last_minute"] <= busiest["last_hour"] <= busiest["items"]
    states = ["serving", "serving"]  # an appliance is ready before all its workers are
    edge.until(lambda: [one["state"] for one in shown()["workers"]] == states, "both serve")


def test_reload(run: Run, config: Path) -> None:
    done = run("reload", "--config", config)
    assert (done.code, done.err) == (0, "")
    assert "as before" in done.out
    said = json.loads(run("reload", "--config", config, "--json").out)
    assert (said["policy_changed"], said["certificate_changed"]) == (False, False)


@pytest.mark.parametrize(
    ("command", "client", "reason"),
    [
        (command, client, reason)
        for command in ("top", "reload", "keys list", "operations list", "operations officers")
        for client, reason in (("issuer", "POLICY_DENIED"), ("stranger", "PEER_UNKNOWN"))
        if (command, client) != ("keys list", "issuer")
    ],
)
def test_a_refusal_is_told_with_its_rule(
    run: Run, appliance: Any, command: str, client: str, reason: str
) -> None:
    done = run(*command.split(), "--client", appliance.client_file(client))
    assert (done.code, done.out) == (1, "")
    assert reason in done.err
    assert "rule: " in done.err
    done = run(*command.split(), "--client", appliance.client_file(client), "--json")
    assert (done.code, json.loads(done.out)["error"]["reason"]) == (1, reason)


NOWHERE = "facilities/x/keys/y"


@pytest.mark.parametrize(
    "command",
    [
        f"keys show {NOWHERE}",
        "keys plan",
        "operations show 0123456789abcdef",
        "operations reject 0123456789abcdef --reason wrong --yes",
        f"operations propose create-key {NOWHERE} --algorithm ES256 --yes",
        f"operations propose deactivate {NOWHERE}/versions/1 --yes",
        f"keys suspend {NOWHERE} --reason lost --yes",
    ],
)
def test_every_refusal_is_json_for_programs(run: Run, appliance: Any, command: str) -> None:
    done = run(*command.split(), "--client", appliance.client_file("stranger"), "--json")
    assert (done.code, json.loads(done.out)["error"]["reason"]) == (1, "PEER_UNKNOWN")


def test_a_refused_verification_is_one_line_of_json(
    run: Run, appliance: Any, tmp_path: Path
) -> None:
    file = tmp_path / "m"
    file.write_text("e30.e30.AAAA")
    done = run("verify", "--client", appliance.client_file("stranger"), "--json", file)
    [line] = done.out.splitlines()
    assert (done.code, json.loads(line)["error"]["reason"]) == (1, "PEER_UNKNOWN")
    done = run("verify", "--client", appliance.client_file("auditor"), "--json", file, file)
    assert (done.code, len(done.out.splitlines())) == (1, 2), "a verdict each, and no more"


def test_sign_files(run: Run, appliance: Any, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for number, file in enumerate(files):
        file.write_text(f'{{"n":{number}}}')
    files[1].write_text("not JSON")
    done = run("sign", "--client", appliance.client_file(), *JWS_KEY, *files)
    assert done.code == 1
    assert f"{files[1]}: PAYLOAD_INVALID" in done.err
    assert "1 of 3 payloads" in done.err
    key = appliance.key("01-001/records")
    for file in (files[0], files[2]):
        token = file.with_name(f"{file.name}.jws").read_bytes().strip()
        outputs.check_jws(key, token, file.read_bytes())
    assert not (tmp_path / "b.json.jws").exists()


def test_sign_lines(run: Run, appliance: Any, tmp_path: Path) -> None:
    lines = [f"line {number}".encode() for number in range(700)]
    source = tmp_path / "lines"
    source.write_bytes(b"\n".join(lines))
    words = ("sign", "--client", appliance.client_file(), *MESSAGE_KEY, "--lines", source)
    key = appliance.key("01-001/records")
    done = run(*words, "--batch", 300)
    assert (done.code, done.err) == (0, "")
    for line, signature in zip(lines, done.out.splitlines(), strict=True):
        outputs.check_raw(key, base64.b64decode(signature), line)
    done = run(*words, "--json")
    said = [json.loads(text) for text in done.out.splitlines()]
    assert [each["line"] for each in said] == list(range(1, 701))
    outputs.check_raw(key, base64.b64decode(said[-1]["signature"]), lines[-1])


def test_sign_is_refused_as_a_whole(run: Run, appliance: Any, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("{}")
    done = run("sign", "--client", appliance.client_file("auditor"), *JWS_KEY, file)
    assert done.code == 1
    assert "POLICY_DENIED" in done.err
    assert list(tmp_path.iterdir()) == [file]


def test_a_client_file_with_wrong_paths_is_told(run: Run, appliance: Any, tmp_path: Path) -> None:
    text = appliance.client_file().read_text()
    file = tmp_path / "client.yaml"
    file.write_text(text)  # its paths count from here, and there is nothing
    done = run("health", "--client", file)
    assert (done.code, done.out) == (1, "")
    assert str(tmp_path) in done.err
    file.write_text(text + "port: 7\n")
    done = run("health", "--client", file)
    assert done.code == 1
    assert "port: " in done.err
