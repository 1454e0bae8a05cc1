from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.scoring.scores import Interval
from tests.trainer.evaluation.test_scoring import SETTINGS, scored
from trainer.evaluation.compare import CompareConfig, compare, main
from trainer.evaluation.results import write_evaluation
from trainer.evaluation.scoring import evaluation_of

FIRST = [scored("mujoco-ant", [2.0, 2.0]), scored("mujoco-hopper", [1.0, 3.0]), scored("babyai-go-to", [0.0])]
SECOND = [scored("mujoco-hopper", [2.0]), scored("mujoco-ant", [1.0]), scored("atari-alien", [5.0])]


def test_the_tasks_of_both_are_compared_by_task_domain_and_together() -> None:
    found = compare(FIRST, SECOND)
    assert list(found) == ["mujoco-ant", "mujoco-hopper", "mujoco", "overall"]
    assert found["mujoco-ant"] == Interval(1.0, 1.0, 1.0)
    assert found["mujoco-hopper"].mean == 0.5
    assert found["mujoco"] == found["overall"]
    assert found["overall"].mean == 0.75


def test_two_without_a_common_task_and_one_with_itself_are_refused() -> None:
    with pytest.raises(UserError, match="no task in common: babyai-go-to; mujoco-hopper, mujoco-ant"):
        compare(FIRST[2:], SECOND[:2])
    with pytest.raises(UserError, match="both 'early'"):
        CompareConfig("early", "early")


def test_two_evaluations_of_a_run_are_compared_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path, "", evaluation_of(SETTINGS, FIRST))
    write_evaluation(tmp_path, "early", evaluation_of(SETTINGS, SECOND))
    monkeypatch.setattr(sys, "argv", ["compare", "--out", str(tmp_path), "--name", "early"])
    main()
    printed = capsys.readouterr().out
    assert "own over early" in printed
    assert any(line.split()[1::2][:2] == ["overall", "0.75"] for line in printed.splitlines() if "overall" in line)
    monkeypatch.setattr(sys, "argv", ["compare", "--out", str(tmp_path), "--name", "early", "--format", "json"])
    main()
    rows = json.loads(capsys.readouterr().out)
    assert [(row["task"], row["probability"]) for row in rows][-1] == ("overall", 0.75)
    assert set(rows[0]) == {"task", "probability", "probability_low", "probability_high"}
