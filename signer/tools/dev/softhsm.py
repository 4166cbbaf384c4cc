"""A token in SoftHSM, created by its own tool; this process loads no PKCS#11 module."""

import os
import pty
import re
import subprocess
import tty
from pathlib import Path

from signer.errors import OperatorError

LABEL = "signer-dev"
LIBRARY = "libsofthsm2.so"
_TOOL_SECONDS = 30
_FOLDERS = ("/usr/lib/softhsm", "/usr/local/lib/softhsm", "/usr/lib64", "/usr/lib64/pkcs11")


def find_module() -> Path:
    """Returns where SoftHSM's module is installed. Raises OperatorError."""
    folders = [Path(folder) for folder in _FOLDERS]
    folders += sorted(Path("/usr/lib").glob("*/softhsm"))
    for folder in folders:
        if (folder / LIBRARY).is_file():
            return folder / LIBRARY
    raise OperatorError(
        f"{LIBRARY} is not in {', '.join(map(str, folders))}: install SoftHSM,"
        " `apt install softhsm2` on Debian and Ubuntu"
    )


def find_token(module: Path, configuration: Path) -> str | None:
    """Returns the serial number of our token, None if there is none yet.

    Raises OperatorError if the module is not SoftHSM's or has two such tokens.
    """
    if module.name != LIBRARY:
        raise OperatorError(f"signer dev works with SoftHSM only; {module.name} is another module")
    shown = _tool(configuration, "--show-slots", "--module", str(module))
    tokens = shown.split("Token info:")[1:]
    if not tokens or not all("SoftHSM project" in token for token in tokens):
        raise OperatorError(f"signer dev works with SoftHSM only; {module} is another module")
    serials = [
        match[1]
        for token in tokens
        if re.search(rf"(?m)^\s+Label:\s+{re.escape(LABEL)}\s*$", token)
        and (match := re.search(r"(?m)^\s+Serial number:\s+([0-9a-f]+)\s*$", token))
    ]
    if len(serials) > 1:
        raise OperatorError(f"two tokens have the label {LABEL}: delete the folder and start again")
    return serials[0] if serials else None


def init_token(module: Path, configuration: Path, pin: str, so_pin: str) -> str:
    """Creates our token and returns its serial number. Raises OperatorError.

    The tool reads the PINs from a pseudo-terminal: on its command line every user of the
    machine could read them.
    """
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", buffering=0) as keyboard:
        tty.setraw(theirs)  # no echo: the tool's output may appear in an error, the PINs must not
        # The tool asks twice for each: the security officer's first, then the user's.
        keyboard.write(f"{so_pin}\n{so_pin}\n{pin}\n{pin}\n".encode())
        with os.fdopen(theirs, "rb", buffering=0) as terminal:
            _tool(
                configuration,
                *("--init-token", "--free", "--label", LABEL, "--module", str(module)),
                stdin=terminal.fileno(),
            )
    serial = find_token(module, configuration)
    if serial is None:
        raise OperatorError("softhsm2-util created a token but does not list it: read its messages")
    return serial


def _tool(configuration: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> str:
    try:
        done = subprocess.run(
            ["softhsm2-util", *arguments],
            env={**os.environ, "SOFTHSM2_CONF": str(configuration), "LC_ALL": "C"},
            stdin=stdin,
            capture_output=True,
            timeout=_TOOL_SECONDS,
            check=False,
            text=True,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise OperatorError(
            "softhsm2-util is not installed: `apt install softhsm2` on Debian and Ubuntu"
        ) from None
    except subprocess.TimeoutExpired:
        raise OperatorError(
            f"softhsm2-util {arguments[0]} did not end within {_TOOL_SECONDS} s"
        ) from None
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()
        raise OperatorError(f"softhsm2-util {arguments[0]} failed: {output}")
    return done.stdout
