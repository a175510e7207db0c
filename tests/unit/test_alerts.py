"""The alerts ask for metrics that exist, and the runbook has a word on each of them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.exporter import metrics
from worker.jobs.queues import QUEUES
from worker.store.gauges import OPEN_STATES, Gauges

OPS = Path(__file__).parents[2] / "ops"
RULES: list[dict[str, Any]] = yaml.safe_load((OPS / "prometheus" / "alerts.yml").read_text())[
    "groups"
][0]["rules"]
METRICS = {one.name for one in metrics(Gauges({}, {}, {}, 0, 0, ()))} | {"chatqueue_database_up"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_metrics_queues_and_states_that_exist(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"chatqueue_\w+", rule["expr"]))
    assert names
    assert names <= METRICS
    values = set(re.findall(r'"([^"]+)"', rule["expr"]))
    assert values <= {*QUEUES, *OPEN_STATES}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"].endswith(".")


def test_the_runbook_has_a_section_for_each_alert_and_for_nothing_else() -> None:
    sections = re.findall(r"^## (\w+)$", (OPS / "runbook.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
