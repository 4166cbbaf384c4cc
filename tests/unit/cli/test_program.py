"""The program ``signer``, as a process of its own."""

import subprocess
import sys

WARNS = """
import warnings
from signer import __main__ as program
program.commands.main = lambda: warnings.warn("the text of a library")
program.main()
"""


def test_warnings_of_libraries_are_for_those_who_ask_for_them() -> None:
    shown = [
        subprocess.run(
            [sys.executable, *options, "-c", WARNS], capture_output=True, text=True, check=True
        ).stderr
        for options in ([], ["-W", "default"])
    ]
    assert shown[0] == ""
    assert "the text of a library" in shown[1]
