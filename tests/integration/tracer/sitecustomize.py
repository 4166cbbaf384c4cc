"""Notes which product files each thread of a daemon or worker enters.

Python imports this module by its name where PYTHONPATH has a copy's folder. While that folder
has a file ``on``, calls are noted; when it is gone, each process writes ``PID.json`` there: by
the name of the thread, the files whose functions were called.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType

FOLDER = Path(__file__).parent
_PRODUCT = f"{os.sep}signer{os.sep}"
_entered: dict[str, set[str]] = {}
_on = False


def _note(frame: FrameType, event: str, _: object) -> None:
    if _on and event == "call" and _PRODUCT in frame.f_code.co_filename:
        name = threading.current_thread().name
        _entered.setdefault(name, set()).add(frame.f_code.co_filename)


def _watch() -> None:
    global _on  # noqa: PLW0603 - every call reads it, so it must be cheap to read
    while True:
        time.sleep(0.02)
        _on = (FOLDER / "on").exists()
        if not _on and _entered:
            draft = FOLDER / f"{os.getpid()}.draft"
            draft.write_text(json.dumps({name: sorted(files) for name, files in _entered.items()}))
            draft.rename(draft.with_suffix(".json"))
            _entered.clear()


threading.Thread(target=_watch, name="tracer", daemon=True).start()
threading.setprofile(_note)
sys.setprofile(_note)
