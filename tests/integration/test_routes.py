"""A reader can follow a request and an operation: few files, all of them in the guide."""

import re

import pytest

from tests.integration.routes import PRODUCT, Routes, trace

GUIDE = (PRODUCT.parent / "docs" / "architecture.md").read_text()
CHAPTERS = {"request": "The way of a request", "operation": "The way of an operation"}
MOST_FILES = {"request": 30, "operation": 28}
"""Without those of ADDED."""
ADDED = {
    "callers are who their certificates say, and hold a bounded share": (
        *("api/identity.py", "api/places.py", "distinguished_name.py", "x509.py"),
    ),
    "one event loop that works in rounds, for calls that come together": (
        *("event_loop.py", "audit/write/inbox.py", "hsm/front/chunks.py"),
        *("hsm/front/dispatcher.py", "signing/lots.py", "signing/messages.py"),
        "signing/repeat.py",
    ),
    "an index of the keys that is not among the values it has": ("key_index.py",),
    "records whose failures are a packed column": ("audit/format/batch_records.py",),
    "the lifetime of a key version": ("policy/lifetime.py", "signing/charging.py"),
    "several tokens, keys on demand, and what may not sign on one of them": (
        *("hsm/front/breaker.py", "hsm/front/router.py", "hsm/front/stops.py"),
        *("hsm/heartbeat.py", "hsm/worker/lookup.py", "officers/placing.py"),
    ),
    "admission by what is ahead of a batch": (
        *("hsm/front/admission_check.py", "hsm/front/costs.py"),
    ),
    "wrapped keys": (
        *("officers/kinds/storing.py", "officers/packing.py", "officers/wrapped.py"),
        *("officers/wrapping_standing.py", "officers/possession.py"),
    ),
    "nothing is served that the log does not account for": (
        *(
            "daemon/accounts.py",
            "daemon/enforcement.py",
            "keys/rows.py",
            "keys/writing.py",
            "officers/accounting.py",
        ),
        *("officers/offline_check.py", "officers/permits.py", "officers/standing.py"),
        *("officers/steps.py", "officers/suspending.py", "officers/ways.py"),
        *("officers/judgement.py", "officers/operation_memory.py"),
        *("keys/columns.py", "officers/keys_record.py", "officers/kinds/operation_context.py"),
    ),
}
"""Files that both routes got with what the appliance learnt since they were this short."""


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Routes:
    return trace(tmp_path_factory.mktemp("routes"))


@pytest.mark.parametrize("route", CHAPTERS)
def test_the_guide_names_every_file_of_a_route(routes: Routes, route: str) -> None:
    chapter = GUIDE.partition(f"\n## {CHAPTERS[route]}\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"\]\(\.\./signer/([^)#]+)\)", chapter))
    assert sorted(getattr(routes, route) - named) == []
    assert all((PRODUCT / file).exists() for file in named)


@pytest.mark.parametrize("route", CHAPTERS)
def test_a_route_is_short(routes: Routes, route: str) -> None:
    added = {file for files in ADDED.values() for file in files}
    files = sorted(getattr(routes, route) - added)
    assert MOST_FILES[route] - 5 <= len(files) <= MOST_FILES[route], files


def test_what_was_added_is_on_a_route(routes: Routes) -> None:
    added = {file for files in ADDED.values() for file in files}
    added -= {"distinguished_name.py"}  # which keeps what it has read: it may be entered before
    assert sorted(added - routes.request - routes.operation) == []


def test_the_worker_is_on_the_way_of_a_request(routes: Routes) -> None:
    assert "hsm/worker/__main__.py" in routes.request
