"""The API's files compile as they are, lint demands their options, and nothing released breaks."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = sysconfig.get_path("purelib")  # googleapis-common-protos is there
BUF = [str(Path(sys.executable).with_name("buf"))]
CONFIG = ("--config", str(ROOT / "proto" / "buf.yaml"))
OPTIONS = ("go_package", "java_package", "java_multiple_files", "csharp_namespace")


def image(folder: Path, name: str = "", change: tuple[str, str] = ("", "")) -> Path:
    """Compiles the files, one of them with a change by a pattern; returns their descriptors."""
    sources = folder / "proto"
    for path in (ROOT / "proto").rglob("*.proto"):
        text = path.read_text()
        if path.name == name:
            text, changes = re.subn(change[0], change[1], text)
            assert changes
        copy = sources / path.relative_to(ROOT / "proto")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    out = folder / "image.binpb"
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", "--include_imports", "--include_source_info"),
        *("-o", str(out)),
        *("-I", str(sources), "-I", SITE, *map(str, sorted(sources.rglob("*.proto")))),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return out


def buf(*words: object) -> str:
    """Returns what buf finds; empty if that is nothing."""
    done = subprocess.run(
        [*BUF, *map(str, words), *CONFIG], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout


def breaking(made: Path) -> str:
    return buf("breaking", made, "--against", ROOT / "proto" / "released.binpb")


def test_they_are_in_order(tmp_path: Path) -> None:
    made = image(tmp_path)
    assert buf("lint", made) == ""
    assert breaking(made) == ""


@pytest.mark.parametrize("option", OPTIONS)
def test_each_file_must_have_the_options_of_each_language(tmp_path: Path, option: str) -> None:
    made = image(tmp_path, "keys.proto", (rf"(?m)^option {option} = .*\n", ""))
    assert option in buf("lint", made)
    assert option in breaking(made)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("string request_id = 4", "string request_ids = 4"),
        ("FORMAT_HCERT = 5", "FORMAT_HCERT = 9"),
        ("rpc SignBatch", "rpc SignBatches"),
        ("repeated bytes payloads = 3", "bytes payloads = 3"),
    ],
)
def test_a_change_that_breaks_programs_is_found(
    tmp_path: Path, pattern: str, replacement: str
) -> None:
    assert breaking(image(tmp_path, "signing.proto", (pattern, replacement)))


def test_a_new_field_breaks_nothing(tmp_path: Path) -> None:
    pattern = r"(string request_id = 4;)"
    assert breaking(image(tmp_path, "signing.proto", (pattern, r"\1\n  string x = 99;"))) == ""


@pytest.mark.parametrize("of", ["api", "cli"])
def test_references_are_those_of_the_code(tmp_path: Path, of: str) -> None:
    """`make reference` writes them anew."""
    command = [sys.executable, str(ROOT / ".ci" / "reference"), of]
    command += [str(image(tmp_path))] if of == "api" else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == (ROOT / f"docs/{of}.md").read_text()
