"""Documents agree with the code: tables, commands, links, names of files."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from signer.cli.main import cli
from signer.config import models as config
from signer.config.client_file import ClientFile
from signer.errors import Extent, Reason
from signer.formats import dcc, jws, shc
from signer.policy import compile as compiling
from signer.policy import document, fit

ROOT = Path(__file__).parents[2]
FOLDERS = ("*.md", "docs/**/*.md", "softhsm/*.md", "config/**/*.md")
DOCUMENTS = sorted(path for folder in FOLDERS for path in ROOT.glob(folder))
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()

MODELS: Mapping[str, type[BaseModel]] = {
    "signer.yaml": config.Config,
    "tls": config.TlsConfig,
    "tokens": config.TokenConfig,
    "audit": config.AuditConfig,
    "operations": config.OperationsConfig,
    "limits": config.LimitsConfig,
    "timestamps": config.TimestampsConfig,
    "tracing": config.TracingConfig,
    "roles": document.StaffRules,
    "groups": document.GroupRules,
    "Rules": document.Profile,
    "hcert": document.HcertRules,
    "shc": document.ShcRules,
    "timestamp": document.TimestampRules,
    "cosigning": document.CosigningRules,
    "content": document.Content,
}
"""Which heading of the configuration's document describes which model."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """Of the table under a heading, the cells of each row whose first cell is code, by that."""
    section = re.search(rf"(?ms)^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text)
    assert section, heading
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section[1].splitlines()
        if line.startswith("| `")
    ]
    table = {row[0].strip("`"): row[1:] for row in cells}
    assert len(table) == len(cells), "two rows have the same name"
    return table


def names_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by their names in YAML."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


# --- errors ------------------------------------------------------------------------------------

_EXTENTS = {Extent.CALL: "call", Extent.ITEM: "item", Extent.BOTH: "call or item"}


def test_the_error_table_is_that_of_the_code() -> None:
    table = rows((ROOT / "docs/errors.md").read_text(), "The table")
    assert {reason: (row[0], row[1], row[-1]) for reason, row in table.items()} == {
        str(reason): (reason.code.name, _EXTENTS[reason.scope], "yes" if reason.retryable else "no")
        for reason in Reason
    }


# --- configuration -----------------------------------------------------------------------------


KEYS = {
    **{heading: set(names_of(model)) for heading, model in MODELS.items()},
    "Client files": set(ClientFile._fields),
    "hours": {*names_of(document.OpeningHours), *names_of(document.Opening)},
    "facilities": set(names_of(document.FacilityRules)) - set(names_of(document.Rules)),
    "Policy": set(compiling.SECTIONS),
}


@pytest.mark.parametrize("heading", KEYS)
def test_every_key_is_described_and_no_other(heading: str) -> None:
    assert set(rows(CONFIGURATION, heading)) == KEYS[heading]


def test_what_is_required_is_described_as_required() -> None:
    client = {name: " ".join(row) for name, row in rows(CONFIGURATION, "Client files").items()}
    required = {name for name, row in client.items() if "required" in row}
    assert required == set(ClientFile._fields) - set(ClientFile._field_defaults)
    sections = rows(CONFIGURATION, "Policy").items()
    assert {name for name, row in sections if row[-1] == "yes"} == set(compiling.REQUIRED)


def test_content_rules_are_described_with_their_formats() -> None:
    described = {name: row[0] for name, row in rows(CONFIGURATION, "content").items()}
    assert described == {
        name: ", ".join(sorted(used_by)) for name, used_by in fit.CONTENT_OF.items()
    }


LARGEST = {"JWS": jws.MAX_BYTES, "HCERT": dcc.MAX_BYTES, "SHC": shc.MAX_BYTES, "TIMESTAMP": 1024}


@pytest.mark.parametrize(("name", "size"), LARGEST.items())
def test_the_largest_payloads_are_those_of_the_code(name: str, size: int) -> None:
    proto = (ROOT / "proto/signer/v1/signing.proto").read_text()
    comment = proto[: proto.index(f"FORMAT_{name} =")].rpartition("// Payload: ")[2]
    assert f"at most {size // 1024} KiB" in comment
    assert f"{name} {size // 1024} KiB" in " ".join(rows(CONFIGURATION, "Rules")["formats"])


FIELDS = [
    pytest.param(heading, name, info, id=f"{heading}.{name}")
    for heading, model in MODELS.items()
    for name, info in names_of(model).items()
]
_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length")


@pytest.mark.parametrize(("heading", "name", "info"), FIELDS)
def test_defaults_and_bounds_are_those_of_the_models(
    heading: str, name: str, info: FieldInfo
) -> None:
    row = " ".join(rows(CONFIGURATION, heading)[name])
    numbers = set(re.findall(r"\d+", row))
    bounds = [getattr(limit, bound, None) for limit in info.metadata for bound in _BOUNDS]
    assert {f"{bound:.0f}" for bound in bounds if bound is not None} <= numbers
    if info.is_required():
        assert "required" in row
    elif isinstance(info.default, bool):
        assert str(info.default).lower() in row
    elif isinstance(info.default, int | float):
        assert f"{info.default:.0f}" in numbers
    elif isinstance(info.default, str):
        assert info.default in row


# --- commands ----------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """Every `signer ...` of a document: lines of code blocks, and code within sentences."""
    blocks = re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```", text)
    for block in (block for language, block in blocks if language in ("", "sh")):
        lines = block.replace("\\\n", " ").splitlines()
        lines = [re.sub(r"^ID=\$\((.*)\)$", r"\1", line) for line in lines]
        yield from (line for line in lines if line.startswith("signer "))
    prose = re.sub(r"(?ms)^ *```.*?^ *```", "", text)
    yield from (" ".join(code.split()) for code in re.findall(r"`(signer [^`]+)`", prose))


def misuse(line: str) -> str | None:
    """Why a line is not a valid command, or None."""
    words = shlex.split(re.split(r" [|>#] ?", line)[0])[1:]
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] != "…":
        name = words.pop(0)
        if name.startswith("--"):
            break
        found = command.get_command(click.Context(command), name)
        if found is None:
            return f"no command {name}"
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    strange = [word for word in words if word.startswith("--") and word not in known]
    return f"{command.name} has no {', '.join(strange)}" if strange else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_commands_exist_with_their_options(path: Path) -> None:
    wrong = {line: why for line in commands(path.read_text()) if (why := misuse(line))}
    assert not wrong


def test_the_check_of_commands_sees_mistakes() -> None:
    text = "```sh\nsigner sign --nothing \\\n  --key K\n```\nand `signer keys make`."
    assert [misuse(line) for line in commands(text)] == ["sign has no --nothing", "no command make"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_make_targets_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z]+):", makefile))
    text = path.read_text()
    said = re.findall(r"`make ([a-z]+)`", text) + re.findall(r"(?m)^make ([a-z]+)", text)
    assert set(said) <= targets


# --- links and size ----------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """How the headings of a document are linked to, as GitHub writes it."""
    text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text())
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", path.read_text()):
        if "://" not in link:
            target = path.parent / link if link else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_decisions_are_short_and_whole() -> None:
    decisions = sorted((ROOT / "docs/adr").glob("*.md"))
    numbers = [int(path.name[:4]) for path in decisions]
    assert numbers == list(range(1, len(decisions) + 1))
    for path in decisions:
        text = path.read_text()
        headings = re.findall(r"(?m)^## (.+)$", text)
        assert headings == ["Context", "Decision", "Rejected", "Consequences"], path.name
        assert len(text.splitlines()) <= 40, path.name


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


_FOLDERS = "signer|tests|proto|config|docs|softhsm|\\.ci"
_PATH = re.compile(rf"`((?:{_FOLDERS})/[\w./*-]+)(?:::\w+)?`")


_DOCUMENT = re.compile(r"\bdocs/[\w/.-]+")


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_files_that_are_named_exist(path: Path) -> None:
    """A path of the repository in code, like `signer/api/guard.py`; a * stands for several."""
    named_paths = _PATH.findall(path.read_text())
    assert [name for name in named_paths if not any(ROOT.glob(name.rstrip("/")))] == []


def test_documents_that_the_product_names_exist() -> None:
    sources = [
        *ROOT.glob("signer/**/*.py"),
        *ROOT.glob("proto/**/*.proto"),
        *(path for path in ROOT.glob("config/**/*") if path.is_file()),
    ]
    named = {name for path in sources for name in _DOCUMENT.findall(path.read_text())}
    assert len(named) > 5
    assert [name for name in named if not any(ROOT.glob(f"{name.rstrip('.')}*"))] == []
