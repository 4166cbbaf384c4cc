"""A run of the tests without the vectors of others says what it has not tested."""

import os
import subprocess
import sys
from pathlib import Path

from tests import vectors

ROOT = Path(__file__).parents[2]


def test_each_missing_folder_is_named(tmp_path: Path) -> None:
    assert len(list(vectors.left_out(tmp_path))) == 3
    (tmp_path / vectors.COSE_EXAMPLES).mkdir()
    missing = " ".join(vectors.left_out(tmp_path))
    assert "the EU's certificates" in missing
    assert "the published DCC schema" in missing
    assert "COSE" not in missing


def test_a_run_without_them_ends_with_what_it_left_out(tmp_path: Path) -> None:
    """The same repository, in a folder without the vectors beside it."""
    project = tmp_path / "beside" / "project"
    project.parent.mkdir()
    project.symlink_to(ROOT)
    tests = project / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir"]
    command += [str(project), "-c", str(project / "pyproject.toml")]
    done = subprocess.run(
        [*command, str(tests / "conformance" / "test_cose_examples.py")],
        env={**os.environ, "PYTHONPATH": str(project)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT TESTED: THE VECTORS OF OTHERS" in done.stdout
    assert "left out: the EU's certificates: our bytes" in done.stdout
    assert "passed" not in done.stdout
