from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.runtime.metrics import METRICS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "alerts.yml"
CASES = Path(__file__).with_name("alerts_cases.yml")
PROMTOOL = shutil.which("promtool", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
# Prometheus's own, and what Ray tells of its nodes; tests/pipeline/runtime/test_metrics.py finds the latter at the
# endpoint.
OTHERS = {"up", "ray_node_disk_utilization_percentage"}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:ray_\w+|up)\b", expression))


def test_alerts_are_about_metrics_that_there_are() -> None:
    named = set[str]().union(*(metrics_of(rule["expr"]) for rule in rules()))
    assert named - OTHERS <= {f"ray_{name}" for name in METRICS}
    assert named >= OTHERS and len(named) > 6


def test_every_alert_is_in_the_guide_and_every_one_there_exists() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(Jat\w+)`", text)) == {rule["alert"] for rule in rules()}


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: apt-get install prometheus")
def test_prometheus_raises_each_alert_when_it_should_and_not_before(tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    cases.write_text(CASES.read_text(encoding="utf-8").replace("[RULES]", f"['{RULES}']"), encoding="utf-8")
    for words in (["check", "rules", str(RULES)], ["test", "rules", str(cases)]):
        done = subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    # Each has a case that raises it.
    raised = {
        test["alertname"]
        for case in yaml.safe_load(cases.read_text(encoding="utf-8"))["tests"]
        for test in case["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert raised == {rule["alert"] for rule in rules()}
