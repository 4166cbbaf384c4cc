"""The rules for Prometheus are sound: each alert fires for one series and not for another.

``promtool`` runs the cases of the ``*.yml`` beside this file. tests/fault/test_alerts.py sees
the same rules fire on a real appliance.
"""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from signer.observe.catalogue import FAMILIES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config/prometheus"
CONFIGS = sorted({*FOLDER.glob("*.yml")} - {FOLDER / "alertmanager.yml"})
RULES = sorted(FOLDER.glob("rules/*.yml"))
CASES = sorted(Path(__file__).parent.glob("*.yml"))
_OF_PROMETHEUS = {"process_start_time_seconds", "process_resident_memory_bytes"}


def promtool(*arguments: object) -> None:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@cache
def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_accepted_and_has_all_rules_and_their_job(
    path: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load(path.read_text())
    for job in config["scrape_configs"]:
        if job.pop("kubernetes_sd_configs", []):  # Debian's promtool was built without it
            job["static_configs"] = [{"targets": ["127.0.0.1:9464"]}]
    (tmp_path / "rules").symlink_to(FOLDER / "rules")
    (tmp_path / path.name).write_text(yaml.safe_dump(config))
    promtool("check", "config", tmp_path / path.name)  # with the rule files that it names
    assert sorted(config["rule_files"]) == [f"rules/{each.name}" for each in RULES]
    assert [job["job_name"] for job in config["scrape_configs"]] == ["signer"]


def test_all_rules_are_accepted() -> None:
    assert {path.name for path in RULES} == {"recording.yml", "alerts.yml"}
    assert {path.name for path in CONFIGS} == {"prometheus.yml", "kubernetes.yml"}
    promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)


def test_the_job_of_kubernetes_finds_the_pods_of_the_manifests() -> None:
    [job] = yaml.safe_load((FOLDER / "kubernetes.yml").read_text())["scrape_configs"]
    [sets] = [
        each
        for each in yaml.safe_load_all((ROOT / "config/kubernetes/appliances.yaml").read_text())
        if each["kind"] == "StatefulSet"
    ]
    pod = sets["spec"]["template"]
    ports = [port["name"] for each in pod["spec"]["containers"] for port in each["ports"]]
    [discovery] = job["kubernetes_sd_configs"]
    assert discovery == {"role": "pod", "namespaces": {"names": [sets["metadata"]["namespace"]]}}
    keep = job["relabel_configs"][0]["regex"]
    name = pod["metadata"]["labels"]["app.kubernetes.io/name"]
    assert [port for port in ports if re.fullmatch(keep, f"{name};{port}")] == ["metrics"]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_for_one_series_and_not_for_another(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    expected: dict[str, set[bool]] = {rule["alert"]: set() for rule in ALERTS}
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for look in case["alert_rule_test"]:
                expected[look["alertname"]].add(bool(look["exp_alerts"]))
    assert {alert: looks for alert, looks in expected.items() if len(looks) < 2} == {}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_where_how_bad_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    summary, description, link = (rule["annotations"][name] for name in rule["annotations"])
    whose = "$labels.job" if "job:signer_sli" in rule["expr"] else "$labels.instance"
    assert whose in summary or rule["alert"] == "SignerMissing"
    assert summary[-1] != "."
    assert description[-1] == "."
    assert link == f"docs/runbook.md#{rule['alert'].lower()}"


def test_rules_ask_for_metrics_that_there_are() -> None:
    """A rule over a name that nobody exports is silent for ever, and promtool is content."""
    exported = set(_OF_PROMETHEUS)
    for family in FAMILIES:
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        exported |= {f"{family.name}{suffix}" for suffix in suffixes}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        asked = set(re.findall(r"\b(?:job:)?(?:signer|process)_[a-z0-9_:]+", rule["expr"]))
        assert asked <= exported | recorded, rule.get("alert") or rule["record"]


def test_rules_ask_for_label_values_that_there_are() -> None:
    known = {
        (family.name, label.name): label.values
        for family in FAMILIES
        for label in family.labels
        if label.values
    }
    asked = 0
    for rule in rules():
        for metric, selector in re.findall(r"(signer_\w+)\s*\{([^}]*)\}", rule["expr"]):
            for label, values in re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"([^\"]*)\"", selector):
                if (metric, label) in known:
                    assert set(values.split("|")) <= set(known[metric, label]), rule
                    asked += 1
    assert asked > 10
