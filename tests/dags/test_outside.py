"""Environments and experts from outside the repository, through all stages by the `jat` command, with real workers.

Slow: every stage that plays starts its own Ray.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from experts.store import stored_experts
from pipeline.files import read_json

ROOT = Path(__file__).parents[2]

PACKAGE = '''
import gymnasium as gym
import numpy as np

from pipeline.envs.domain import Domain, SuppliedExpert
from pipeline.envs.spaces import TaskView
from pipeline.envs.task import CONTINUOUS, IMAGE, IMAGE_SHAPE, Action, Task

COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200)}


class Shelf(gym.Env):
    """Earns one for naming the largest of three numbers."""

    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self):
        self.seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.seen

    def step(self, action):
        reward, self.steps = float(action == self.seen.argmax()), self.steps + 1
        return self.look(), reward, self.steps == 8, False, {}


class Paint(Shelf):
    """Earns one for telling whether the picture has the colour of the word."""

    observation_space = gym.spaces.Dict(
        picture=gym.spaces.Box(0, 255, (32, 48, 3), np.uint8), word=gym.spaces.Text(9, charset="redblu")
    )
    action_space = gym.spaces.Discrete(2)

    def look(self):
        word, colour = (str(self.np_random.choice(sorted(COLOURS))) for _ in range(2))
        self.is_same = word == colour
        return {"picture": np.full((32, 48, 3), COLOURS[colour], np.uint8), "word": word}

    def step(self, action):
        reward, self.steps = float(action == self.is_same), self.steps + 1
        return self.look(), reward, self.steps == 8, False, {}


def make_shelf(task):
    return TaskView(Shelf(), task.name)


def make_paint(task):
    return TaskView(Paint(), task.name)


def tell(picture, word):
    return int((picture[0, 0, 0] > picture[0, 0, 2]) == (word == "red"))


class Largest:
    def __init__(self, task):
        pass

    def reset(self, slots, seeds, envs):
        pass

    def act(self, slots, observations):
        return observations.values.argmax(axis=1)


def task(name, env, **values):
    return Task(
        name=name, domain=name.split("-")[0], env_id=env, jat_env_id=env, max_steps=8, success=None,
        packages=("attic",), **values,
    )


SHELF = task("shelf-largest", "Shelf", observation=CONTINUOUS, observation_shape=(3,), action=Action("discrete", 3),
             factory=make_shelf)
PAINT = task("paint-same", "Paint", observation=IMAGE, observation_shape=IMAGE_SHAPE, has_text=True,
             action=Action("discrete", 2), factory=make_paint)
EXPERT = SuppliedExpert("attic:Largest", "attic", "the largest number")
DOMAINS = [
    Domain("shelf", "The shelf", (SHELF,), licence="The shelf is MIT.", experts={"largest": EXPERT}),
    Domain("paint", "Painted pictures", (PAINT,), about="A picture and a word."),
]
'''


# Somebody else's training, with the library alone.
TEACH = """
import attic
from stable_baselines3 import PPO

PPO("MlpPolicy", attic.Shelf(), n_steps=64, batch_size=32, device="cpu", seed=1).learn(256).save("taught")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment variables of a shell in which a package with two domains is installed."""
    site = tmp_path / "site"
    info = site / "attic-1.5.dist-info"
    info.mkdir(parents=True)
    (site / "attic.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: attic\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[jat.domains]\nattic = attic:DOMAINS\n")
    path = os.pathsep.join([str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": path, "PATH": programs}


def shell(script: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a script until its first failing command; return what it printed."""
    result = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.mark.timeout(900)
def test_the_readme_s_screen_leads_from_nothing_to_a_report(tmp_path: Path, environment: dict[str, str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own task")[1]
    match = re.search(r"```\n(.*?)```", text, re.DOTALL)
    assert match is not None and len(match[1].splitlines()) <= 12
    script = match[1] + "jat evaluate --out runs/pole --name own --episodes 1 --video-episodes 0 --reference-envs\n"
    said = shell(script.replace("jat ", "python -m dags.cli "), tmp_path, environment)
    assert said.count("mean of gym") >= 2
    rows = load_dataset(str(tmp_path / "runs/pole/dataset"), "gym-CartPole-v1", split="train")
    assert rows.num_rows == 40 and set(rows.column_names) == {"continuous_observations", "discrete_actions", "rewards"}
    assert "Gymnasium" in (tmp_path / "runs/pole/report/index.html").read_text(encoding="utf-8")


@pytest.mark.timeout(900)  # seven times a Ray, which takes long to start on a busy machine
def test_a_package_s_two_domains_go_through_all_stages(tmp_path: Path, environment: dict[str, str]) -> None:
    script = r"""
jat tasks --task 'shelf,paint'
python teach.py
jat experts --task shelf --expert ./taught.zip --episodes 4 --workers 1 --out run
jat experts --task shelf --expert ppo --retrain --steps 2048 --episodes 4 --workers 1 --out run
jat experts --task shelf --expert largest --episodes 10 --workers 1 --out run
jat experts --task paint --expert py:attic:tell --episodes 10 --workers 1 --out run
export JAT_FUNCTIONS=attic:tell
jat collect --task 'shelf,paint-*' --episodes 20 --workers 1 --out run
jat dataset --task '*' --out run
jat dataset validate --dataset run/dataset
jat train --out run --steps 6 --checkpoint-every 6 --warmup-steps 2 --batch-steps 64 --context-steps 8 --threads 1 \
  --model.hidden-size 64 --model.num-layers 2
jat evaluate --out run --episodes 4 --video-episodes 1 --workers 1
jat film --out run --workers 1
jat report --out run
"""
    (tmp_path / "teach.py").write_text(TEACH)
    said = shell(script.replace("jat ", "python -m dags.cli "), tmp_path, environment)
    experts = stored_experts(tmp_path / "run", "shelf-largest")
    origins = " ".join(expert.record.origin for expert in experts)
    assert "Loaded from ./taught.zip" in origins and "trained with ppo in the task's own environment" in origins
    assert {"ppo", "largest"} <= {
        path.name.split("-")[0] for path in (tmp_path / "run/experts/shelf-largest").iterdir()
    }
    assert "2 tasks" in said and "mean of shelf" in said and "mean of paint" in said
    assert "shelf-largest cannot be drawn" in said and "its films are left out" in said
    dataset = str(tmp_path / "run/dataset")
    rows = load_dataset(dataset, "paint-same", split="train")
    assert set(rows.column_names) == {"image_observations", "text_observations", "discrete_actions", "rewards"}
    first = rows[0]
    assert first["image_observations"][0].size == (84, 84)
    assert {*first["text_observations"]} <= {"red", "blue"} and set(first["rewards"]) == {1.0}
    sides = load_dataset(dataset, "paint-same-episodes", split="train")
    assert {*sides["versions"]} == {"attic 1.5"} or "attic" in sides["versions"][0]
    card = (tmp_path / "run/dataset/README.md").read_text(encoding="utf-8")
    assert "### Painted pictures" in card and "The shelf is MIT." in card
    page = (tmp_path / "run/report/index.html").read_text(encoding="utf-8")
    assert "The shelf" in page and "Painted pictures" in page
    scores = read_json(tmp_path / "run/evaluation/scores.json")
    assert {"shelf-largest", "paint-same"} <= set(re.findall(r"[a-z]+-[a-z]+", str(scores)))
