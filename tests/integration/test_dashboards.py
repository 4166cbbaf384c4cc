"""The dashboards of config/grafana: how they are built, and that every query finds its data."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import pytest
import yaml

from signer.observe.catalogue import BY_NAME, Family
from tests.daemon import kill_workers
from tests.integration import edge, officers
from tests.integration.grafana import FILES, FOLDER, Dashboard, Query, shows_data
from tests.prometheus_server import PrometheusServer

DASHBOARDS = [Dashboard(path) for path in FILES]
EXPECTED = {"facilities-and-keys", "hsm-and-workers", "service-health"}
UNITS = {"short", "s", "bytes", "percentunit", "cps", "reqps"}
PROMETHEUS_LABELS = {"instance", "le"}

each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)

# --- how they are built ---------------------------------------------------------------------------


def test_there_is_one_for_each_reader_and_they_lead_to_each_other() -> None:
    assert {dashboard.name for dashboard in DASHBOARDS} == EXPECTED
    assert len({dashboard.json["uid"] for dashboard in DASHBOARDS}) == len(EXPECTED)
    for dashboard in DASHBOARDS:
        assert dashboard.json["tags"] == ["signer"]
        [link] = dashboard.json["links"]
        assert (link["type"], link["tags"]) == ("dashboards", ["signer"])
        assert link["includeVars"]
        assert link["keepTime"]


@each_dashboard
def test_the_file_is_as_the_readme_has_it_written(dashboard: Dashboard) -> None:
    written = json.dumps(dashboard.json, indent=2, sort_keys=True) + "\n"
    assert dashboard.text == written, "python -m json.tool --sort-keys --indent 2"


@each_dashboard
def test_it_shows_recent_data_in_the_readers_own_time(dashboard: Dashboard) -> None:
    assert dashboard.json["timezone"] == "browser"
    assert dashboard.json["refresh"] == "30s"
    assert dashboard.json["schemaVersion"] >= 38  # Grafana 10
    variables = {each["name"]: each for each in dashboard.variables}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["instance"]["multi"]
    assert variables["instance"]["includeAll"]


@each_dashboard
def test_every_panel_says_what_it_shows(dashboard: Dashboard) -> None:
    ids = [panel["id"] for panel in dashboard.json["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in dashboard.panels]
    assert len(titles) == len(set(titles))
    for panel in dashboard.panels:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS, panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(references) == len(set(references))


@each_dashboard
def test_every_query_asks_the_chosen_data_source(dashboard: Dashboard) -> None:
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    asking = [*dashboard.panels, *dashboard.annotations]
    asking += [target for panel in dashboard.panels for target in panel["targets"]]
    asking += [each for each in dashboard.variables if each["type"] == "query"]
    assert [each["datasource"] for each in asking] == [wanted] * len(asking)


@each_dashboard
def test_no_panel_lies_on_another(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.json["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns = range(place["x"], place["x"] + place["w"])
        cells = set(product(columns, range(place["y"], place["y"] + place["h"])))
        assert not cells & taken, panel["title"]
        taken |= cells


def family(name: str) -> Family | None:
    """The entry of the catalogue that a sample's name belongs to."""
    for suffix in ("_bucket", "_count", "_sum"):
        found = BY_NAME.get(name.removesuffix(suffix))
        if found is not None and name.endswith(suffix) and found.kind == "histogram":
            return found
    found = BY_NAME.get(name)
    return found if found is not None and found.kind != "histogram" else None


def selectors(text: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Each metric of a query, with its matchers: label, operator, value."""
    for name, matchers in re.findall(r"(\w+)\{(.*?)\}", text):
        found = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers)
        assert len(found) == matchers.count('"') / 2, matchers
        yield name, {label: (operator, value) for label, operator, value in found}


@each_dashboard
def test_queries_name_only_what_the_catalogue_has(dashboard: Dashboard) -> None:
    """A name or value that does not exist would be an empty panel on a bad day."""
    texts = [query.text for query in dashboard.queries()]
    for text in texts:
        assert "facility" not in text
        bare = re.sub(r'"[^"]*"', "", text)
        named = re.findall(r"\b((?:signer|process|python)_\w+|up|ALERTS)\b", bare)
        found = list(selectors(text))
        assert named == [name for name, _ in found], f"a metric for every instance: {text}"
        known = {"none"} | PROMETHEUS_LABELS
        for name, matchers in found:
            if name == "ALERTS":
                continue
            assert matchers.pop("instance") == ("=~", "$instance"), text
            if name != "up" and not name.startswith(("process_", "python_")):
                entry = family(name)
                assert entry is not None, name
                labels = {label.name: label for label in entry.labels}
                known |= labels.keys()
                for label, (_, value) in matchers.items():
                    closed = set(labels[label].values)
                    chosen = value == f"${label}" or not closed
                    assert chosen or set(value.split("|")) <= closed, text
        for kept in re.findall(r"\b(?:by|group_left) \(([\w, ]+)\)", text):
            assert set(kept.split(", ")) <= known, text


def test_provisioning_names_what_is_there() -> None:
    provisioning = FOLDER / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/signer.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    [provider] = yaml.safe_load((provisioning / "dashboards/signer.yaml").read_text())["providers"]
    readme = (FOLDER / "README.md").read_text()
    assert provider["options"]["path"] in readme
    assert all(f"{name}.json" in readme for name in EXPECTED)


# --- against a real Prometheus --------------------------------------------------------------------

CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: signer
    static_configs:
      - targets: ["{target}"]
"""
RULES = """\
groups:
  - name: test
    rules:
      - alert: SignerFiresAlways
        expr: signer_build_info
"""
SECONDS = 90.0
"""How long a busy machine may take until all data has been seen."""
NUMBERS = {"stat", "bargauge", "state-timeline"}
"""Kinds of panels that show something on an appliance that has done nothing yet."""
ED25519, DIGEST = "facilities/01-001/keys/records-ed25519", "facilities/moh/keys/digest"
DCC, DCC_RSA = "facilities/moh/keys/dcc", "facilities/moh/keys/dcc-rsa"
HOURLY, DAILY = "facilities/01-002/keys/records", "facilities/strict/keys/records"
BOOSTER = Path(__file__).parents[1].joinpath("e2e/vaccinations/booster.json").read_bytes()
TOMORROW = BOOSTER.replace(b"2022-01-15", b"2099-01-15")


class Shown(NamedTuple):
    """What a reader did not get to see; nothing, where all is well."""

    idle: list[Query]
    loaded: list[Query]
    offered: dict[str, list[str]]


def change(policy: dict[str, Any]) -> None:
    """Small quotas over two windows, and a second group."""
    policy["facilities"]["01-002"]["quotas"] = ["10 per hour"]
    policy["facilities"]["strict"] |= {"group": "99", "quotas": ["10 per day"]}


def ordinary(issuer: edge.Stubs, stranger: edge.Stubs) -> Iterator[Callable[[], object]]:
    """Calls of all kinds, several of which fail."""
    yield lambda: issuer.sign([b"{}"] * 20 + [b"no JSON"])
    yield lambda: issuer.sign([b"bytes"] * 5, key=DAILY, format="FORMAT_COSE_SIGN1")
    yield lambda: issuer.sign([b"text"] * 5, key=ED25519, format="FORMAT_MESSAGE")
    yield lambda: issuer.sign([BOOSTER, TOMORROW], key=DCC, format="FORMAT_HCERT")
    yield lambda: issuer.sign([bytes(32)] * 5, key=DIGEST, format="FORMAT_DIGEST")
    yield lambda: issuer.sign([b"{}"] * 5, key=HOURLY)
    yield lambda: issuer.sign(key="facilities/01-001/keys/none")
    yield lambda: issuer.sign([b"text"] * 3000, key=edge.RSA, format="FORMAT_MESSAGE", timeout=0.3)
    yield stranger.sign


def floods(issuer: edge.Stubs) -> Iterator[Callable[[], object]]:
    """Batches that keep workers busy and a queue of two classes before them."""
    yield lambda: issuer.sign([b"text"] * 300, key=edge.RSA, format="FORMAT_MESSAGE")
    yield lambda: issuer.sign([b"more"] * 300, key=edge.RSA, format="FORMAT_MESSAGE")
    yield lambda: issuer.sign([BOOSTER] * 200, key=DCC_RSA, format="FORMAT_HCERT")


@contextmanager
def load(dev: dict[str, Any]) -> Iterator[None]:
    """Callers that go on and on within the block, whatever they are answered."""
    over = threading.Event()

    def repeat(calls: list[Callable[[], object]]) -> None:
        while not over.is_set():
            for call in calls:
                with suppress(grpc.RpcError):
                    call()
            over.wait(0.05)

    with ExitStack() as stack:
        issuer = stack.enter_context(edge.connect(dev))
        stranger = stack.enter_context(edge.connect(dev, "stranger"))
        callers = [list(ordinary(issuer, stranger)), *([flood] for flood in floods(issuer))]
        threads = [threading.Thread(target=repeat, args=(calls,)) for calls in callers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


def workers(made: Any) -> list[psutil.Process]:
    children = psutil.Process(made.process.pid).children(recursive=True)
    return [child for child in children if "signer.hsm.worker" in child.cmdline()]


def break_the_mirror(mirror: Path) -> None:
    shutil.rmtree(mirror)
    mirror.write_text("no folder any more")


def break_the_hsm(made: Any) -> None:
    """No worker can log in any more."""
    (made.dir / "pin").write_text("0000-wrong")
    kill_workers(made.dir, *workers(made))


class Watcher:
    """Asks every query again and again, until it has found data without its fallback."""

    def __init__(self, server: PrometheusServer) -> None:
        self._server = server
        self.choices = {each.name: each.choices(server) for each in DASHBOARDS}
        self.left = self.without_data([query.bare for query in queries()])

    def without_data(self, asked: list[Query]) -> list[Query]:
        values = {each.name: each.values(self.choices[each.name]) for each in DASHBOARDS}
        return [
            query for query in asked if not shows_data(self._server, query, values[query.dashboard])
        ]

    def watch(self, enough: Callable[[list[Query]], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not enough(self.left) and time.monotonic() < end:
            self.choices = {each.name: each.choices(self._server) for each in DASHBOARDS}
            self.left = self.without_data(self.left)
            time.sleep(0.1)


def queries() -> list[Query]:
    return [query for dashboard in DASHBOARDS for query in dashboard.queries()]


@pytest.fixture(scope="module")
def shown(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A daemon without work, then with all kinds of it, then without its HSM."""
    folder, mirror = tmp_path_factory.mktemp("prometheus"), tmp_path_factory.mktemp("m") / "mirror"
    config = {"audit": {"mirror": str(mirror)}}
    (folder / "rules.yml").write_text(RULES)
    with ExitStack() as stack:
        own = edge.own(
            appliance, tmp_path_factory.mktemp("watched"), workers=2, config=config, policy=change
        )
        made = stack.enter_context(own)
        target = made.dev["metrics"].removeprefix("http://")
        server = PrometheusServer(folder, CONFIG.format(target=target))
        stack.enter_context(closing(server))
        edge.until(lambda: server.query("count_over_time(up[1m]) >= 3"), "three scrapes", 60)
        watcher = Watcher(server)
        idle = watcher.without_data([query for query in queries() if query.kind in NUMBERS])

        name = "facilities/01-001/keys/later"
        officers.Office(made.dev).propose("create-key", key=name, algorithm="ES256")
        break_the_mirror(mirror)
        with load(made.dev):
            kill_workers(made.dir, workers(made)[0])
            watcher.watch(lambda left: all(needs_a_broken_hsm(query) for query in left))
            break_the_hsm(made)
            watcher.watch(lambda left: not left)
        offered = {name: found for each in watcher.choices.values() for name, found in each.items()}
        yield Shown(idle, watcher.left, offered)


def needs_a_broken_hsm(query: Query) -> bool:
    return any(text in query.text for text in ("HSM_UNAVAILABLE|", 'result!="ok"', "state!="))


@each_dashboard
def test_on_an_idle_appliance_every_number_is_there(dashboard: Dashboard, shown: Shown) -> None:
    assert [query for query in shown.idle if query.dashboard == dashboard.name] == []


@each_dashboard
def test_under_load_every_query_finds_data_of_its_own(dashboard: Dashboard, shown: Shown) -> None:
    """Not only the 0 that stands for nothing."""
    assert [query for query in shown.loaded if query.dashboard == dashboard.name] == []


def test_variables_offer_what_there_is(shown: Shown) -> None:
    assert len(shown.offered.pop("instance")) == 1
    assert shown.offered == {"token": ["signer-dev"], "group": ["01", "99"]}
