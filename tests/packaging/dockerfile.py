"""The Dockerfile as data, and its stages carried out in folders, for want of an engine."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.packaging import container

ROOT = Path(__file__).parents[2]


class Line(NamedTuple):
    """One instruction, its continued lines put together."""

    word: str
    rest: str


def instructions(text: str) -> list[Line]:
    """Reads a Dockerfile without its comments."""
    text = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    return [Line(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def stages(text: str) -> dict[str, list[Line]]:
    """Returns the instructions of each stage by its name, FROM among them."""
    found: dict[str, list[Line]] = {}
    for line in instructions(text):
        if line.word == "FROM":
            found[line.rest.split()[-1]] = []
        found[list(found)[-1]].append(line)
    return found


@dataclass(frozen=True)
class Image:
    """What a stage leaves: its root, and how it is to be run."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    health: Sequence[str] = ()
    volume: str = ""
    stop: str = ""
    ports: str = ""

    def options(self) -> list[str]:
        """What nspawn is told to run something as this image says."""
        return [f"--chdir={self.folder}", *container.with_variables(self.environment)]

    def as_user(self, command: Sequence[str]) -> list[str]:
        """Runs a command as its user, without a capability and without a way to gain one."""
        if self.user == "0":
            return list(command)
        user, _, group = self.user.partition(":")
        rights = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        return ["setpriv", f"--reuid={user}", f"--regid={group}", *rights, *command]


class Builder:
    """Carries out a Dockerfile, each stage in a copy of what it comes from."""

    def __init__(
        self, base: Path, folder: Path, variables: Mapping[str, str], options: Sequence[str]
    ) -> None:
        """``base`` stands for every image that is not a stage; ``options`` are nspawn's."""
        self._base, self._folder = base, folder
        self._variables, self._options = variables, options
        self.images: dict[str, Image] = {}

    def build(self, text: str) -> dict[str, Image]:
        """Carries out all stages; returns what they left, by their names."""
        for name, lines in stages(text).items():
            source = lines[0].rest.split()[0]
            before = self.images.get(source, Image(self._base))
            root = container.copy(before.root, self._folder / name)
            image = replace(before, root=root)
            for line in lines[1:]:
                image = self._step(image, line)
            self.images[name] = image
        return self.images

    def _step(self, image: Image, line: Line) -> Image:
        match line.word:
            case "RUN":
                settings = container.with_variables(self._variables)
                options = [*settings, *image.options(), *self._options]
                container.inside(image.root, image.as_user(["sh", "-c", line.rest]), *options)
            case "COPY":
                self._copy(image, line.rest.split())
            case "WORKDIR":
                (image.root / line.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        return replace(image, **_said(image, line))

    def _copy(self, image: Image, words: list[str]) -> None:
        source = ROOT
        if words[0].startswith("--from="):
            source = self.images[words.pop(0).removeprefix("--from=")].root
        *names, target = words
        into = image.root / str(Path(image.folder) / target).lstrip("/")
        for name in names:
            found = source / name.lstrip("/")
            if found.is_dir():  # its content, as COPY does
                shutil.copytree(found, into, symlinks=True, ignore=_LEFT_OUT)
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, into)


_LEFT_OUT = shutil.ignore_patterns("__pycache__")


def _said(image: Image, line: Line) -> dict[str, Any]:
    """What an instruction says of the image itself."""
    match line.word:
        case "RUN" | "COPY":
            return {}
        case "ENV":
            return {"environment": _environment(image, line.rest)}
        case "HEALTHCHECK":
            return {"health": json.loads(line.rest.partition(" CMD ")[2])}
        case "ENTRYPOINT" | "CMD":
            return {_NAMES[line.word]: json.loads(line.rest)}
        case word:
            return {_NAMES[word]: line.rest}


_NAMES = {
    "WORKDIR": "folder",
    "USER": "user",
    "VOLUME": "volume",
    "STOPSIGNAL": "stop",
    "ENTRYPOINT": "entrypoint",
    "CMD": "command",
    "EXPOSE": "ports",
}


def _environment(image: Image, text: str) -> dict[str, str]:
    after = dict(image.environment)
    before = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **after}
    for word in shlex.split(text):
        name, _, value = word.partition("=")
        after[name] = re.sub(r"\$(\w+)", lambda found: before[found[1]], value)
    return after
