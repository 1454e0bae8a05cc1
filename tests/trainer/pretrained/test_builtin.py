"""The agent that comes with the package."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.envs.registry import select_tasks
from pipeline.errors import UserError
from trainer.evaluation.evaluate import EvaluateConfig, evaluate
from trainer.evaluation.references import load_references
from trainer.play import PlayConfig, play
from trainer.pretrained.folders import BUILTIN, BUILTIN_FOLDER, locate
from trainer.pretrained.load import agent_config, from_pretrained, half_of, save_pretrained

MAX_BYTES = 12_000_000


def test_it_is_small_and_was_trained_on_every_task_that_had_an_expert() -> None:
    assert locate(BUILTIN) == BUILTIN_FOLDER
    assert sum(path.stat().st_size for path in BUILTIN_FOLDER.iterdir()) < MAX_BYTES
    trained = agent_config(BUILTIN_FOLDER).tasks
    assert {task.name for task in select_tasks("babyai,metaworld,mujoco,atari-pong")} == set(trained)


def test_its_experts_are_measured_in_the_package(tmp_path: Path) -> None:
    tasks = select_tasks(",".join(agent_config(BUILTIN_FOLDER).tasks))
    references = load_references(tmp_path, tasks)
    assert list(references) == list(tasks)
    for random, expert in references.values():
        assert expert.accepted_returns.mean() > random.accepted_returns.mean()


def test_it_plays_where_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (episode,) = play(PlayConfig("babyai-go-to-red-ball", tmp_path / "nothing"))
    assert episode.success
    assert "return 0." in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_the_lines_of_the_readme_play_five_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n([^`]*from_pretrained[^`]*)```", text)
    exec(lines, {})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5
    assert sum("success True" in line for line in said) >= 4


@pytest.mark.slow
def test_it_is_evaluated_without_a_run(tmp_path: Path) -> None:
    config = EvaluateConfig(
        "babyai-go-to-red-ball,metaworld-door-open", tmp_path, Path(BUILTIN), episodes=3, workers=1, video_episodes=0
    )
    scores = evaluate(config, is_worker=True)
    assert [score.task for score in scores] == config.task.split(",")
    assert all(score.score is not None and score.score.mean > 0.8 for score in scores)


def test_half_weights_are_those_rounded(tmp_path: Path) -> None:
    checkpoint = from_pretrained(BUILTIN)
    save_pretrained(checkpoint, tmp_path / "half", "", is_half=True)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    loaded = from_pretrained(tmp_path / "half").model.state_dict()
    for name, value in checkpoint.model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name], value.half().float(), rtol=0, atol=0)


def test_weights_too_large_for_half_are_refused() -> None:
    with pytest.raises(UserError, match=r"head.weight holds weights above 65,504"):
        half_of({"head.weight": torch.tensor([1e5])})


def test_it_can_be_copied_and_read_as_any_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(BUILTIN_FOLDER, tmp_path / "copy")
    assert agent_config(tmp_path / "copy") == agent_config(BUILTIN_FOLDER)
