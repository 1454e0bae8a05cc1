"""A folder in the released JAT's format is evaluated by the code that evaluates our own checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.scoring.measurement import Measurement
from pipeline.seeds import seeds_of
from pipeline.versions import versions_of
from tests.trainer.pretrained.test_released import CONFIG, make_folder, make_tokenizer
from trainer.agent import Agent
from trainer.evaluation.evaluate import EvaluateConfig, evaluate
from trainer.evaluation.results import load_evaluation, load_measurement_of
from trainer.pretrained.load import from_pretrained

TASK = replace(select_tasks("babyai-go-to-local")[0], max_steps=7)


def write_references(out: Path, task: Task, random: float, expert: float) -> None:
    """An OUT with nothing but the measurements of random and expert."""
    for policy, mean in (("random", random), ("bot", expert)):
        measurement = Measurement(
            task.name, policy, f"{policy}-1", versions_of(task.packages), seeds_of("measure", 2), [mean, mean], [1, 1],
            [True, True], [None, None],
        )  # fmt: skip
        write_json(out / "experts" / task.name / f"{policy}-1" / "measurement.json", measurement)


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    write_references(tmp_path / "out", TASK, 0.0, 0.9)
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


@pytest.mark.usefixtures("nothing_embedded")
def test_what_it_is_measured_by_must_be_there(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run `jat experts --task babyai-go-to-local --out .*elsewhere`"):
        evaluate(replace(config, out=tmp_path / "elsewhere"), [TASK], is_worker=True)


def make_repository(folder: Path) -> Path:
    """All files of a repository like jat-project/jat, with as many positions, and otherwise small.

    Besides what is read there are what its own code needs, and a module of that code, which must not be run.
    """

    def widen(state: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(1)
        state["transformer.wpe.weight"] = 0.02 * torch.randn(512, 50)

    config = CONFIG | {
        "max_position_embeddings": 512,
        "window_size": 256,
        "auto_map": {"AutoConfig": "configuration_jat.JatConfig", "AutoModel": "modeling_jat.JatModel"},
        "attention_dropout": 0.0,
        "bos_token_id": 50256,
        "initializer_range": 0.02,
        "tokenizer_class": "GPT2TokenizerFast",
        "torch_dtype": "float32",
        "transformers_version": "4.34.0",
        "use_cache": True,
    }
    make_folder(folder, config, widen)
    make_tokenizer().model.save(str(folder))  # vocab.json and merges.txt, beside tokenizer.json
    for name, content in {
        "preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}},
        "special_tokens_map.json": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        "tokenizer_config.json": {"model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Jack of All Trades\n")
    for name in ("configuration_jat.py", "modeling_jat.py", "processing_jat.py"):
        (folder / name).write_text("raise SystemExit('code of a repository was run')\n")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_evaluate_plays_a_repository_like_the_released_one_in_a_grid_world_and_with_an_arm(
    tmp_path: Path,
) -> None:
    folder, out = make_repository(tmp_path / "jat"), tmp_path / "out"
    tasks = {task.name: task for task in select_tasks("babyai-go-to-local,metaworld-reach")}
    write_references(out, tasks["babyai-go-to-local"], 0.1, 0.9)
    write_references(out, tasks["metaworld-reach"], 140.0, 840.0)
    words = ["RECIPE=jat", f"ARGS=--checkpoint '{folder}'", f"TASK={','.join(tasks)}", f"OUT={out}", "EPISODES=2"]
    root = Path(__file__).parents[3]
    line = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "evaluate", f"PY={sys.executable}", "WORKERS=1", *words],
        cwd=root, check=True, capture_output=True, text=True, env={**os.environ, "MAKEFLAGS": ""},
    ).stdout  # fmt: skip
    line = line[line.index(f"{sys.executable} -m dags.cli evaluate") :]  # behind what `setup` would do
    played = subprocess.run(["bash", "-c", line], check=False, cwd=root, capture_output=True, text=True)
    assert played.returncode == 0, played.stderr

    evaluation = load_evaluation(out)
    assert evaluation.settings.how == ("at temperature 1, looking back atari 16, babyai 128, metaworld 128, mujoco 128")
    checkpoint = from_pretrained(folder)
    assert [score.task for score in evaluation.tasks] == list(tasks)
    for score in evaluation.tasks:
        task = tasks[score.task]
        agent = Agent(checkpoint, [task] * 2, context_steps=128)
        expected = [episode.total_reward for episode in rollout(task, agent, seeds_of("evaluate", 2), 2)]
        assert score.returns == pytest.approx(expected, rel=1e-4)
        assert score.scores == pytest.approx([(r - score.random) / (score.expert - score.random) for r in expected])
        assert score.jat_score is not None
        assert {path.stem for path in (out / "evaluation" / "films" / task.name).glob("*.mp4")} == {
            str(seed) for seed in seeds_of("evaluate", 2)
        }
