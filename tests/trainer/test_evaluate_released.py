"""A folder in the released JAT's format is evaluated by the code that evaluates our own checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.measurement import Measurement
from pipeline.rollout import rollout
from pipeline.seeds import seeds_of
from pipeline.tasks import select_tasks
from pipeline.versions import versions_of
from tests.trainer.networks.test_released import make_folder
from trainer.agent import Agent
from trainer.evaluate import EvaluateConfig, evaluate
from trainer.networks.pretrained import from_pretrained
from trainer.scores.results import load_evaluation, load_measurement_of

TASK = replace(select_tasks("babyai-go-to-local")[0], max_steps=7)


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    """An OUT with nothing but the measurements of random and expert."""
    for policy, mean in (("random", 0.0), ("bot", 0.9)):
        measurement = Measurement(
            TASK.name, policy, f"{policy}-1", versions_of(TASK.packages), seeds_of("measure", 2), [mean, mean], [1, 1],
            [True, True], [None, None],
        )  # fmt: skip
        write_json(tmp_path / "out" / "experts" / TASK.name / f"{policy}-1" / "measurement.json", measurement)
    return EvaluateConfig(
        task="babyai",
        out=tmp_path / "out",
        checkpoint=make_folder(tmp_path / "jat"),
        episodes=3,
        workers=1,
        video_episodes=0,
    )


def test_it_plays_with_its_own_context_and_samples(config: EvaluateConfig) -> None:
    (score,) = evaluate(config, [TASK], is_worker=True)
    assert config.checkpoint is not None
    agent = Agent(from_pretrained(config.checkpoint), [TASK] * 3)  # 20 of its 40 positions, sampled at 1
    played = list(rollout(TASK, agent, seeds_of("evaluate", 3), 3))
    assert score.returns == pytest.approx([episode.total_reward for episode in played])
    assert (score.expert_kind, score.num_episodes) == ("bot", 3)
    assert score.jat_return == pytest.approx(0.9, abs=0.1)
    settings = load_evaluation(config.out).settings
    assert (settings.checkpoint, settings.step, settings.temperature) == (str(config.checkpoint), 0, 1.0)


def test_its_contexts_and_sampling_are_options_and_part_of_the_result(config: EvaluateConfig) -> None:
    evaluate(replace(config, contexts={"babyai": 2}, temperature=0.0), [TASK], is_worker=True)
    found = load_measurement_of(config.out, TASK.name)
    assert found is not None
    assert found.revision.endswith("at temperature 0, looking back babyai 2")
    with pytest.raises(UserError, match="--contexts: 21 time steps in babyai-go-to-local take 42 positions"):
        evaluate(replace(config, contexts={"babyai": 21}), [TASK], is_worker=True)


def test_what_it_is_measured_by_must_be_there(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run `make experts TASK=babyai-go-to-local OUT=.*elsewhere`"):
        evaluate(replace(config, out=tmp_path / "elsewhere"), [TASK], is_worker=True)
