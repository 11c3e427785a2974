"""Alerts and dashboard: unit tests of every alert, its page, and metrics that exist."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from keepfit.observability.process_counts import ProcessCounts
from keepfit_workers import metrics
from keepfit_workers.metrics import Counter, WorkerMetrics
from keepfit_workers.metrics_page import WorkerPage
from tests.conftest import Stack
from tests.k8s.builds import FULL, K8S, ROOT, one
from tests.k8s.prometheus import promtool

TESTS = Path(__file__).with_name("alerts.yaml")
PAGE = ROOT / "docs/operations/alerts.md"
SPEC: dict[str, Any] = yaml.safe_load((K8S / "components/monitoring/alerts.yaml").read_text())["spec"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in SPEC["groups"] for rule in group["rules"]}
DASHBOARD: dict[str, Any] = json.loads((K8S / "components/monitoring/dashboard.json").read_text())
# Of the Prometheus client, not of keepfit, and labels that the operator adds.
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
ADDED = {"namespace", "pod", "job"}


def queries() -> dict[str, str]:
    """Return the expressions of the dashboard's panels by their titles."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    }


def expressions() -> dict[str, str]:
    """Return every expression of alerts, dashboard and autoscaler, with Grafana's variables replaced."""
    found = {name: rule["expr"] for name, rule in ALERTS.items()} | queries()
    for trigger in one(FULL, "ScaledObject", "workers")["spec"]["triggers"]:
        found[trigger["type"]] = trigger["metadata"].get("query", "1")
    return {name: text.replace("$__rate_interval", "5m").replace("$namespace", ".*") for name, text in found.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the rules as a file of Prometheus, and their unit tests."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(SPEC))
    (tmp_path / "alerts.yaml").write_text(TESTS.read_text())
    return tmp_path


def test_alerts_fire_when_they_should(folder: Path) -> None:
    """Each alert fires on the series that it is about after its time, with its labels, and not before."""
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", folder / "rules.yaml")
    assert "SUCCESS" in promtool("test", "rules", folder / "alerts.yaml")


def test_every_alert_has_unit_tests() -> None:
    """Each alert has a test in which it fires and one in which it does not."""
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == set(ALERTS)


def test_the_page_has_every_alert() -> None:
    """The table of the page has the expression, time and severity of each rule; each has a section with all parts."""
    text = PAGE.read_text()
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| [Keepfit")]
    listed = {
        re.findall(r"\[(\w+)\]", row[0])[0]: [cell.replace("\\|", "|").strip("`") for cell in row[1:]] for row in rows
    }
    assert listed == {
        name: [" ".join(rule["expr"].split()), rule.get("for", "0s"), rule["labels"]["severity"]]
        for name, rule in ALERTS.items()
    }
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sections.keys() == ALERTS.keys()
    for section in sections.values():
        assert re.findall(r"^\*\*(.+?)\.\*\* \S", section, re.MULTILINE) == ["Means", "Look at", "Do"]


def test_every_alert_says_where_to_read_on() -> None:
    """Each alert has a severity, a summary and the address of its section."""
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "runbook"}
        assert rule["annotations"]["runbook"] == f"{PAGE.relative_to(ROOT)}#{name.lower()}"


def test_every_expression_parses(tmp_path: Path) -> None:
    """Prometheus reads every expression of alerts, dashboard and autoscaler."""
    rules = [{"record": f"parsed:{number}", "expr": text} for number, text in enumerate(expressions().values())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "parsed", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


def page_of_workers() -> str:
    """Return the page of a `keepfit worker` that has counted something of everything."""
    counts = ProcessCounts()
    counted = WorkerMetrics(counts)
    for metric in metrics.ALL:
        if isinstance(metric, Counter):
            counted.add(metric, *metric.labels)
        else:
            counted.observe(metric, 1.0, *metric.labels)
    registry = CollectorRegistry()
    registry.register(WorkerPage(ProcessCounts(), [counts]))
    return generate_latest(registry).decode()


def test_expressions_name_what_services_export(stack: Stack) -> None:
    """Every metric and label in an expression is on the page of metrics and in the output of a gateway or worker."""
    with urllib.request.urlopen(f"{stack.url}/metrics") as answer:
        exposed = answer.read().decode() + page_of_workers()
    page = (ROOT / "docs/reference/metrics.md").read_text()
    documented = {row[0]: row[1] for row in re.findall(r"^\| `(keepfit_\w+)` \| (.*)$", page, re.MULTILINE)}
    labels = dict(re.findall(r"^(\w+)\{((?:[^}\"]|\"[^\"]*\")*)\}", exposed, re.MULTILINE))
    used = set()
    for name, text in expressions().items():
        for metric, matchers in re.findall(r"\b((?:keepfit|process)_\w+)(?:\{((?:[^}\"]|\"[^\"]*\")*)\})?", text):
            used.add(metric)
            family = re.sub("_(bucket|sum|count)$", "", metric)
            assert family in documented or metric in PROCESS, name
            # Only a deployment with a row log has it.
            assert metric == "keepfit_row_log_waiting" or re.search(rf"^{metric}\b", exposed, re.MULTILINE), name
            found = dict(re.findall(r"(\w+)(?:=|=~|!=|!~)\"([^\"]*)\"", matchers))
            for label, value in found.items():
                assert label in ADDED or f'{label}="' in labels[metric], (name, metric, label)
                if label in ("what", "dependency", "state"):
                    assert {f"`{one}`" for one in value.split("|")} <= set(re.findall(r"`\w+`", documented[metric])), (
                        name
                    )
    # What an operator should see: every metric that is about a fault or about waiting.
    assert {
        metric for metric in documented if re.search("failed|unloadable|waiting|aside|backlog|_up$", metric)
    } <= used


def test_panels_of_the_dashboard_have_their_place() -> None:
    """No two panels overlap; each has a title, a unit and the data source that a reader chooses."""
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]
            assert cell[0] < 24
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "namespace"}


def test_grafana_finds_the_dashboard() -> None:
    """The ConfigMap of the component has the dashboard, unchanged, and the label that Grafana's sidecar looks for."""
    found = one(FULL, "ConfigMap", "keepfit-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["keepfit.json"]) == DASHBOARD
