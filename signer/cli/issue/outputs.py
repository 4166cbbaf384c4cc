"""The files of certificates: texts, QR images and pages, made anew from the journal if missing.

A name of a file has nothing of the person; its content has, so that only its owner may read it.
"""

import csv
import io
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from signer.cli.issue.journal import IssuedCertificate, Journal
from signer.cli.issue.pages import page
from signer.cli.output import explained
from signer.errors import OperatorError
from signer.files import SECRET, replace_file

CERTIFICATES, LIST, REVOKED = "certificates", "certificates.csv", "revoked.txt"
TEXT, PNG, SVG, PAGE = ".hc1", ".png", ".svg", ".html"
_GROUP = 16  # certificates that a process draws at a time
_QUIET = 4  # modules of white around a QR code, as its standard demands
_PIXELS = 4  # of a module in a PNG


class Drawn(NamedTuple):
    """What is drawn of each certificate: kinds of images, and pages of a size ("": no pages)."""

    images: tuple[str, ...]
    page_size: str
    level: str

    @property
    def kinds(self) -> list[str]:
        """The suffixes of the files that are drawn."""
        return [*self.images, *([PAGE] if self.page_size else [])]

    def differing(self, before: Mapping[str, str]) -> dict[str, str]:
        """Returns how files are drawn that were drawn otherwise ``before``, by their suffix."""
        of_page = f"{self.page_size} {self.level}"
        how = {kind: of_page if kind == PAGE else self.level for kind in self.kinds}
        return {kind: said for kind, said in how.items() if before.get(kind) != said}


def draw(folder: Path, drawn: Drawn, wanted: Sequence[tuple[str, str, list[str]]]) -> int:
    """Draws files in a process of its own: of each certificate its stem, its text, the suffixes.

    Returns how many certificates these are; raises OperatorError.
    """
    import segno

    for stem, text, suffixes in wanted:
        try:
            code = segno.make_qr(text, error=drawn.level, boost_error=False)
        except segno.DataOverflowError:
            raise OperatorError(
                f"{folder / stem}: no QR code of level {drawn.level} holds this certificate:"
                " give a lower --qr-level"
            ) from None
        for suffix in suffixes:
            if suffix == PAGE:
                inline = code.svg_inline(border=_QUIET, omitsize=True, svgclass=None)
                content = page(text, inline, drawn.page_size).encode()
            else:
                image = io.BytesIO()
                code.save(image, kind=suffix[1:], scale=_PIXELS, border=_QUIET)
                content = image.getvalue()
            replace_file(folder / f"{stem}{suffix}", content, SECRET)
    return len(wanted)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the command itself stops


def write_outputs(
    journal: Journal,
    folder: Path,
    drawn: Drawn,
    *,
    processes: int,
    advance: Callable[[int], None],
    stopping: Callable[[], bool],
) -> None:
    """Writes what is missing of each certificate in force, and lists; removes what was replaced.

    ``advance`` gets how many certificates are complete. Raises OperatorError.
    """
    certificates = folder / CERTIFICATES
    with explained(folder, "written"):
        certificates.mkdir(mode=0o700, exist_ok=True)
        listed = io.StringIO(newline="")
        table = csv.writer(listed)
        table.writerow(("record", "facility", "uvci", "file", "audit_record"))
        if changed := drawn.differing(journal.drawn):
            for path in certificates.iterdir():
                if path.suffix in changed:
                    path.unlink()
            journal.draw(changed)
        missing = _missing(journal, certificates, drawn, table.writerow, advance)
        if drawn.kinds:
            _draw_all(certificates, drawn, processes, missing, stopping)
        else:
            deque(missing, maxlen=0)
        if not stopping():
            replace_file(folder / LIST, listed.getvalue(), SECRET)
            replace_file(folder / REVOKED, "".join(f"{u}\n" for u in journal.revoked), SECRET)


def _missing(
    journal: Journal,
    folder: Path,
    drawn: Drawn,
    list_row: Callable[[tuple[object, ...]], object],
    advance: Callable[[int], None],
) -> Iterator[tuple[str, str, list[str]]]:
    """Writes texts and rows of the list as it goes; yields what has to be drawn."""
    present, done = {path.name for path in folder.iterdir() if path.stat().st_size}, 0
    for certificate in journal.certificates():
        stem = certificate.stem
        if not journal.in_force(certificate):
            for suffix in (TEXT, PNG, SVG, PAGE):
                if f"{stem}{suffix}" in present:
                    (folder / f"{stem}{suffix}").unlink()
            continue
        if f"{stem}{TEXT}" not in present:
            replace_file(folder / f"{stem}{TEXT}", f"{certificate.text}\n", SECRET)
        list_row(_row(certificate))
        suffixes = [suffix for suffix in drawn.kinds if f"{stem}{suffix}" not in present]
        if suffixes:
            yield stem, certificate.text, suffixes
        done += 1
        advance(done)


def _row(certificate: IssuedCertificate) -> tuple[object, ...]:
    name, number = f"{CERTIFICATES}/{certificate.stem}{TEXT}", certificate.audit_record
    return certificate.record, certificate.facility, certificate.uvci, name, number


def _draw_all(
    folder: Path,
    drawn: Drawn,
    processes: int,
    missing: Iterator[tuple[str, str, list[str]]],
    stopping: Callable[[], bool],
) -> None:
    """Has the processes draw groups, two for each waiting."""
    window: deque[Future[int]] = deque()
    spawn = get_context("spawn")  # this process has threads of gRPC
    pool = ProcessPoolExecutor(processes, spawn, _ignore_interrupts)
    try:
        while not stopping() and (group := list(islice(missing, _GROUP))):
            window.append(pool.submit(draw, folder, drawn, group))
            if len(window) > 2 * processes:
                window.popleft().result()
        for each in window:
            each.result()
    except BrokenProcessPool:
        raise OperatorError(
            "a process that draws has ended: the same command goes on; with fewer --processes it"
            " needs less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
