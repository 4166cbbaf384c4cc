"""A reader can follow a request and an operation: few files, all of them in the guide."""

import re

import pytest

from tests.integration.routes import PRODUCT, Routes, trace

GUIDE = (PRODUCT.parent / "docs" / "architecture.md").read_text()
CHAPTERS = {"request": "The way of a request", "operation": "The way of an operation"}
MOST_FILES = {"request": 60, "operation": 60}


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
    files = sorted(getattr(routes, route))
    assert len(files) <= MOST_FILES[route], files


def test_the_worker_is_on_the_way_of_a_request(routes: Routes) -> None:
    assert "hsm/worker/__main__.py" in routes.request
