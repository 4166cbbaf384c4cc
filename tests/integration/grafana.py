"""Dashboards as Grafana reads them: panels, and queries with their variables put in."""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[2] / "config" / "grafana"
FILES = sorted(FOLDER.glob("*.json"))

_FALLBACK = re.compile(
    r" or (?:vector\(0\)|on \(\) label_replace\(vector\(0\), \"\w+\", \"none\", \"\", \"\"\))"
)
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")
_RANGE_SECONDS = 20


class Query(NamedTuple):
    """A query of a dashboard; ``instant`` ones show one moment, others a line."""

    dashboard: str
    panel: str
    kind: str
    text: str
    instant: bool

    @property
    def bare(self) -> "Query":
        """The query without what it shows where there is nothing to show."""
        return self._replace(text=_FALLBACK.sub("", self.text))


class Dashboard:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.text = path.read_text()
        self.json: dict[str, Any] = json.loads(self.text)

    @cached_property
    def panels(self) -> list[Any]:
        """All panels but the headings of rows."""
        return [panel for panel in self.json["panels"] if panel["type"] != "row"]

    @property
    def variables(self) -> list[Any]:
        return list(self.json["templating"]["list"])

    @property
    def annotations(self) -> list[Any]:
        """Those that ask Prometheus."""
        return [each for each in self.json["annotations"]["list"] if "expr" in each]

    def queries(self) -> Iterator[Query]:
        """Every query of every panel, and of the annotations."""
        for panel in self.panels:
            for target in panel["targets"]:
                found = (panel["title"], panel["type"], target["expr"], target["instant"])
                yield Query(self.name, *found)
        for each in self.annotations:
            yield Query(self.name, each["name"], "annotation", each["expr"], instant=False)

    def choices(self, server: Any) -> dict[str, list[str]]:
        """What each variable that asks Prometheus offers; one may need those before it."""
        found: dict[str, list[str]] = {}
        for variable in self.variables:
            if variable["type"] == "query":
                definition = filled(variable["definition"], self.values(found))
                found[variable["name"]] = label_values(server, definition)
        return found

    def values(self, choices: Mapping[str, list[str]]) -> dict[str, str]:
        """What Grafana puts in for each variable, where All is chosen."""
        values = {"__rate_interval": "15s", "__range": "60s"}
        for variable in self.variables:
            name = variable["name"]
            if name in choices:
                values[name] = variable.get("allValue") or _any_of(choices[name])
            elif variable["type"] == "custom":
                values[name] = variable["current"]["value"]
        return values


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its variables put in. ($1 is none: label_replace takes it.)"""
    return re.sub(r"\$([a-z_]+)", lambda found: values[found[1]], text)


def label_values(server: Any, definition: str) -> list[str]:
    found = _LABEL_VALUES.fullmatch(definition)
    assert found, definition
    return list(server.get(f"label/{found['label']}/values", {"match[]": [found["selector"]]}))


def shows_data(server: Any, query: Query, values: Mapping[str, str]) -> bool:
    """Whether the query finds numbers, asked as Grafana asks it."""
    text = filled(query.text, values)
    if query.instant:
        points = [each["value"] for each in server.query(text)]
    else:
        now = time.time()
        span = {"start": now - _RANGE_SECONDS, "end": now, "step": 1}
        found = server.get("query_range", {"query": text, **span})["result"]
        points = [point for each in found for point in each["values"]]
    return any(math.isfinite(float(value)) for _, value in points)


def _any_of(values: list[str]) -> str:
    """A regular expression inside quotes of PromQL, each value taken literally."""
    return "(" + "|".join(re.escape(each).replace("\\", "\\\\") for each in values) + ")"
