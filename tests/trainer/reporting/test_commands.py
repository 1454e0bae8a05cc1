from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collectors.collect import CollectConfig
from experts.prepare import ExpertsConfig
from pipeline.cli import parse
from pipeline.files import read_json, write_json
from trainer import config as training
from trainer.evaluation import evaluate
from trainer.reporting.commands import command_of, report_commands, stage_runs


def settings_of(path: Path, config: Any) -> dict[str, Any]:
    write_json(path, config)
    settings: dict[str, Any] = read_json(path)
    return settings


@pytest.mark.parametrize(
    "config",
    [
        training.TrainConfig(),
        training.jat(),
        replace(training.jat_small(), loss_weights={}, normalise=False),
        replace(
            training.TrainConfig(), task="mujoco-ant,babyai-*", contexts={"atari": 4, "mujoco": 9}, out=Path("a b")
        ),
        replace(
            training.TrainConfig(), model=replace(training.TrainConfig().model, observation_noise=0.1, hidden_size=64)
        ),
    ],
)
def test_the_command_of_a_training_gives_its_settings(config: training.TrainConfig, tmp_path: Path) -> None:
    recipes = {"default": training.TrainConfig, **training.RECIPES}
    command = command_of("train", settings_of(tmp_path / "config.json", config), recipes)
    words = shlex.split(command)
    assert words[:2] == ["jat", "train"]
    assert parse(training.TrainConfig, training.RECIPES, argv=words[2:]) == config


@pytest.mark.parametrize(
    ("config_type", "config"),
    [
        (CollectConfig, CollectConfig(task="babyai-*", episodes="200", noise="epsilon=0.1", allow_weak=True)),
        (ExpertsConfig, ExpertsConfig(task="mujoco-ant", seconds=3.5)),
    ],
)
def test_without_recipes_every_setting_is_spelled_out(config_type: type, config: Any, tmp_path: Path) -> None:
    command = command_of("x", settings_of(tmp_path / "config.json", config), {})
    assert parse(config_type, argv=shlex.split(command)[2:]) == config


def test_the_stages_of_a_run_are_those_that_left_settings_in_their_order(tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation" / "config.json", replace(evaluate.jat(), episodes=7))
    write_json(tmp_path / "dataset" / "config.json", {"task": "*"})
    found = stage_runs(tmp_path)
    assert [(stage.name, stage.command) for stage in found] == [
        ("dataset", "jat dataset --task '*'"),
        ("evaluation", "jat evaluate --recipe jat --episodes 7"),
    ]
    assert found[1].settings["contexts"] == {"atari": 16, "babyai": 128, "metaworld": 128, "mujoco": 128}


def test_a_run_in_an_object_store_names_its_url_and_not_the_disk_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAT_STATUS_OUT", "s3://lab/run")
    write_json(tmp_path / "shards" / "config.json", {"task": "babyai", "out": "s3://lab/run"})
    write_json(tmp_path / "dataset" / "config.json", {"task": "babyai", "out": str(tmp_path)})
    write_json(tmp_path / "train" / "config.json", replace(training.demo(), out=tmp_path))
    write_json(tmp_path / "evaluation" / "config.json", replace(evaluate.EvaluateConfig(), out=tmp_path, episodes=7))
    found = stage_runs(tmp_path)
    assert [stage.command for stage in found] == [
        "jat collect --task babyai --out s3://lab/run",
        "jat on-disk --stage dataset --out s3://lab/run -- --task babyai",
        "jat on-disk --stage train --out s3://lab/run -- --recipe demo",
        "jat on-disk --stage evaluate --out s3://lab/run -- --episodes 7",
    ]
    assert {stage.settings["out"] for stage in found} == {"s3://lab/run"}
    assert report_commands(tmp_path) == [
        "jat on-disk --stage film --out s3://lab/run --",
        "jat on-disk --stage report --out s3://lab/run --",
    ]


def test_the_report_s_own_commands_name_the_run() -> None:
    assert report_commands(Path("runs/my run")) == [
        "jat film --out 'runs/my run'",
        "jat report --out 'runs/my run'",
    ]
