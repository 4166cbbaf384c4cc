"""Writes docs/metrics.md from the catalogue: ``python -m signer.observe.reference``."""

import sys

from signer.observe.catalogue import FAMILIES, Family, Label
from signer.observe.metrics import SECONDS

_HEAD = """# Metrics

Written by `make reference` from [signer/observe/catalogue.py](../signer/observe/catalogue.py);
`make check` fails if the two differ.

`GET /metrics` on the port `metrics` of `signer.yaml` answers in Prometheus' text format, or in
OpenMetrics (with exemplars) if the request accepts `application/openmetrics-text`. Label values
come from closed sets. The facility is never a label: `signer top` shows the busiest facilities.
Times are seconds; names that end in `_timestamp_seconds` are seconds since 1970: the age is
`time() - metric`, and it grows even if the process is stalled.

The [runbook](runbook.md) says which alerts use them and what to do; the rules are in
[config/prometheus/](../config/prometheus/).

`process_*` (CPU, memory, files, start) and `python_*` (version, garbage collection) describe the
front process.
"""


def page() -> str:
    """Returns the page, in Markdown."""
    parts = [_HEAD, *(_section(family) for family in FAMILIES)]
    bounds = ", ".join(f"{bound:g}" for bound in SECONDS)
    return "\n".join([*parts, f"Buckets of every histogram, in seconds: {bounds}.\n"])


def _section(family: Family) -> str:
    lines = [f"## {family.name}", "", f"{family.kind.capitalize()}. {family.text}", ""]
    if family.labels:
        lines += ["| label | values |", "|---|---|", *map(_row, family.labels), ""]
    return "\n".join(lines)


def _row(label: Label) -> str:
    values = ", ".join(f"`{value}`" for value in label.values)
    return f"| `{label.name}` | {values or label.source} |"


if __name__ == "__main__":
    sys.stdout.write(page())
