from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.media.video import read_mp4
from pipeline.seeds import FIRST_SEED
from tests.fakes import FAKE_TASKS, CountingEnv, num_steps, reward_at
from trainer.play import UPPER_HALF_BLOCK, PlayConfig, half_blocks, play

SEED = FIRST_SEED["evaluate"]


class DrawnEnv(CountingEnv):
    """Its picture tells the step."""

    def render(self) -> np.ndarray:
        return np.full((20, 30, 3), 40 * self.t, np.uint8)


def make_drawn(task: Task) -> DrawnEnv:
    return DrawnEnv(task)


DRAWN = tuple(replace(task, factory=make_drawn) for task in FAKE_TASKS)


@pytest.mark.parametrize("task", FAKE_TASKS, ids=lambda task: task.name)
def test_every_step_is_told_with_its_reward_and_the_return_so_far(
    task: Task, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = play(PlayConfig(task.name, trained, episodes=3), FAKE_TASKS)
    assert [episode.seed for episode in episodes] == [SEED, SEED + 1, SEED + 2]
    lines = capsys.readouterr().out.splitlines()
    expected = []
    for seed in (SEED, SEED + 1, SEED + 2):
        rewards = [reward_at(task, seed, t) for t in range(num_steps(seed))]
        expected += [(t + 1, rewards[t], sum(rewards[: t + 1])) for t in range(len(rewards))]
    steps = [re.search(r"step +(\d+) .*reward +(\S+)  return +(\S+)", line) for line in lines if "step  " in line]
    found = [(int(m[1]), float(m[2]), float(m[3])) for m in steps if m]
    assert found == [(step, pytest.approx(r, abs=1e-3), pytest.approx(total, abs=1e-3)) for step, r, total in expected]
    assert sum(line.startswith(f"{task.name}, seed") for line in lines) == 3


def test_the_same_seed_is_the_episode_that_evaluation_plays(trained: Path) -> None:
    config = PlayConfig("toy-grid", trained, seed=SEED + 4)
    (one,) = play(config, FAKE_TASKS)
    (other,) = play(config, FAKE_TASKS)
    np.testing.assert_array_equal(one.actions, other.actions)


def test_a_video_has_a_frame_per_step_at_the_pace_of_films(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "play.mp4"
    (episode,) = play(PlayConfig("toy-grid", trained, seed=SEED + 4, to=path), DRAWN)
    frames = list(read_mp4(path))
    assert len(frames) == 1 + len(episode) // 2  # every second of the steps 0 to 6
    assert [round(float(frame.mean()) / 80) for frame in frames] == [0, 1, 2, 3]


def test_in_a_terminal_the_picture_is_drawn(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100)
    monkeypatch.setattr("rich.console.Console", lambda: terminal)
    monkeypatch.setattr("trainer.play.DELAY_S", 0)
    monkeypatch.setattr("trainer.play.COLUMNS", 10)
    play(PlayConfig("toy-grid", trained, seed=SEED + 4), DRAWN)
    drawn = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert UPPER_HALF_BLOCK in drawn
    assert "38;2;200;200;200" in drawn  # step 5 of the picture
    assert "no success" in drawn or "success" in drawn


def test_a_picture_becomes_two_pixels_per_character() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[0], frame[1] = (255, 0, 0), (0, 0, 255)
    text = half_blocks(frame, 4)
    assert text.plain == f"{UPPER_HALF_BLOCK * 4}\n" * 2
    assert str(text.spans[0].style) == "rgb(255,0,0) on rgb(0,0,255)"


def test_what_cannot_be_shown_is_said(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--task \* is 2 tasks; name one, such as fake-count"):
        play(PlayConfig("*", trained), FAKE_TASKS)
    with pytest.raises(UserError, match="was not trained on fake-other"):
        play(PlayConfig("fake-other", trained), (replace(FAKE_TASKS[0], name="fake-other"),))
    with pytest.raises(UserError, match="must end in"):
        PlayConfig("toy-grid", to=tmp_path / "play.gif")
    with pytest.raises(UserError, match="toy-grid cannot be drawn"):
        play(PlayConfig("toy-grid", trained, to=tmp_path / "play.mp4"), FAKE_TASKS)
    assert not (tmp_path / "play.mp4").exists()
