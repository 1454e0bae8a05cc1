"""Films of episodes that cannot be drawn from a seed, and how many films are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from collectors.browser import films
from collectors.browser.app import make_app
from collectors.browser.films import Films
from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.stored import StoredEpisode, find_episode
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.media.video import read_mp4
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard
from tests.collectors.browser.conftest import PORT
from tests.fakes import DRAWN, FAKE_PIXELS, expected_episode


def stored(out: Path, task: Task, seed: int = 3) -> StoredEpisode:
    job = ShardJob(task, "train", 0, 5, "random")
    write_shard(out / "shards", job, "1", [expected_episode(task, one) for one in job.seeds])
    return find_episode(task, seed, out)


@pytest.mark.parametrize("has_seed", [True, False])
def test_stored_images_are_shown_where_nothing_can_be_drawn(tmp_path: Path, has_seed: bool) -> None:
    episode = stored(tmp_path, FAKE_PIXELS)
    if not has_seed:
        episode = replace(episode, seed=None)
    film = Films(tmp_path).make("film", episode)
    why = "pixel-count cannot be drawn" if has_seed else "an imported episode has no seed"
    assert film.note.startswith(f"the stored images, not drawn anew: {why}") and film.stride == 1
    frames = list(read_mp4(film.path))
    assert len(frames) == episode.length and frames[0].shape == (84, 84, 3)
    atari = films._picture("atari")(episode.steps.observations[0])
    np.testing.assert_array_equal(atari[..., 0], episode.steps.observations[0][..., 3])  # the newest of four frames


def test_an_imported_episode_without_images_is_neither_shown_nor_played(tmp_path: Path) -> None:
    episode = replace(stored(tmp_path, DRAWN), seed=None)
    with pytest.raises(UserError, match="there is no film: an imported episode has no seed"):
        Films(tmp_path).make("film", episode)
    assert Films(tmp_path).replay(episode, tmp_path) == (
        False,
        "an imported episode has no seed, so it cannot be played again",
    )


def test_a_replay_that_differs_says_where(tmp_path: Path) -> None:
    episode = stored(tmp_path, DRAWN)
    rewards = episode.steps.rewards.copy()
    rewards[2] += 1
    is_equal, text = Films(tmp_path).replay(replace(episode, steps=replace(episode.steps, rewards=rewards)), tmp_path)
    assert not is_equal and "is different: step 2, rewards" in text


def test_the_oldest_film_goes_when_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "MAX_FILMS", 2)
    episode, kept = stored(tmp_path, DRAWN), Films(tmp_path)
    for key in "abc":
        kept.make(key, episode)
    assert kept.find("a") is None and sorted(path.stem for path in tmp_path.glob("*.mp4")) == ["b", "c"]


def test_a_page_without_dimensions_to_choose_has_no_form(tmp_path: Path) -> None:
    stored(tmp_path, FAKE_PIXELS)
    write_shard(
        tmp_path / "shards", ShardJob(FAKE_PIXELS, "test", 1_000_000_000, 1, "random"), "1",
        [expected_episode(FAKE_PIXELS, 1_000_000_000)],
    )  # fmt: skip
    build_dataset(DatasetConfig(out=tmp_path), [FAKE_PIXELS])
    client = TestClient(make_app(tmp_path, PORT, tmp_path, [FAKE_PIXELS]), base_url=f"http://127.0.0.1:{PORT}")
    text = client.get(f"/tasks/{FAKE_PIXELS.name}/train/3").text
    assert "Over time" in text and "<form" not in text
