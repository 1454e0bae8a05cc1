"""`jat agent publish` against a Hub on loopback, with the real client in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.files import read_json
from pipeline.media.video import read_mp4
from tests.fakes import FAKE_TASKS
from tests.hub import TOKEN, LoopbackHub, serve_hub
from tests.trainer.pretrained.test_released import make_folder
from tests.trainer.test_play import make_drawn
from trainer.evaluation.evaluate import EvaluateConfig, evaluate
from trainer.pretrained.load import from_pretrained
from trainer.publish import PublishAgentConfig, publish_network

FILES = {"README.md", "SHA256SUMS", "config.json", "model.safetensors", "normalisers.safetensors", "tokenizer.json"}
LOAD = """
import sys
from trainer.pretrained.load import from_pretrained
checkpoint = from_pretrained(sys.argv[1])
print(len(checkpoint.config.tasks), sum(p.double().sum().item() for p in checkpoint.model.parameters()))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with serve_hub(tmp_path / "hub") as server:
        yield server


def test_what_is_published_loads_from_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "jat")
    options = ["--out", str(tmp_path / "out"), "--checkpoint", str(folder), "--to", "owner/agent"]
    words = ["-m", "trainer.publish", *options]
    ran = hub.run(words, tmp_path / "home")
    assert ran.returncode == 0, ran.stderr
    repository = hub.repository("owner/agent", "model")
    files = repository["commits"][repository["branches"]["main"]]["tree"]
    assert set(files) - {".gitattributes"} == FILES
    loaded = hub.run_script(LOAD, "owner/agent", home=tmp_path / "elsewhere", token=TOKEN)
    checkpoint = from_pretrained(folder)
    num_tasks, total = loaded.split()
    assert int(num_tasks) == len(checkpoint.config.tasks)
    assert float(total) == sum(p.double().sum().item() for p in checkpoint.model.parameters())
    assert read_json(tmp_path / "out" / "publish" / "network" / "published.json")["to"] == "owner/agent"
    hub.forget()
    again = hub.run(words, tmp_path / "home")
    assert again.returncode == 0, again.stderr
    assert hub.sent() == []


def test_a_folder_is_a_place_too(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "jat")
    publish_network(PublishAgentConfig(to=str(tmp_path / "shelf"), out=tmp_path / "out", checkpoint=folder))
    assert {path.name for path in (tmp_path / "shelf").iterdir()} == FILES
    state = from_pretrained(tmp_path / "shelf").model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in from_pretrained(folder).model.state_dict().items())


def test_a_dry_run_moves_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "jat")
    publish_network(
        PublishAgentConfig(to=str(tmp_path / "shelf"), out=tmp_path / "out", checkpoint=folder, dry_run=True)
    )
    assert not (tmp_path / "shelf").exists()
    assert not (tmp_path / "out" / "publish" / "network" / "published.json").exists()


def test_the_films_of_its_evaluation_become_the_video_of_the_card(trained: Path, tmp_path: Path) -> None:
    tasks = tuple(replace(task, factory=make_drawn) for task in FAKE_TASKS)
    evaluate(EvaluateConfig(out=trained, episodes=2, video_episodes=1), tasks, is_worker=True)
    publish_network(PublishAgentConfig(to=str(tmp_path / "shelf"), out=trained))
    assert {path.name for path in (tmp_path / "shelf").iterdir()} == FILES | {"replay.mp4"}
    # The episode is of one step, so its film is one frame; that of the other task stands below it.
    assert [frame.shape for frame in read_mp4(tmp_path / "shelf" / "replay.mp4")] == [(44, 30, 3)]
    assert "model-index" in (tmp_path / "shelf" / "README.md").read_text()
