from __future__ import annotations

from pathlib import Path

import pytest

from experts.random_policy import RandomPolicy
from pipeline.errors import UserError
from pipeline.film import Film, films_in, pace
from pipeline.rollout import rollout
from pipeline.video import read_mp4
from tests.fakes import DRAWN, FAKE_COUNT, num_steps


def test_each_listed_seed_has_a_film_of_every_second_step_and_what_it_shows(tmp_path: Path) -> None:
    film = Film(DRAWN, [3, 1], tmp_path)
    played = rollout(DRAWN, RandomPolicy(DRAWN), [1, 2, 3], 2, film.listen)
    episodes = {episode.seed: episode for episode in film.of(played, "random-1", {"numpy": "1"})}
    found = films_in(tmp_path)
    assert list(found) == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.json", "1.mp4", "3.json", "3.mp4"]
    for seed, filmed in found.items():
        assert (filmed.length, filmed.total_reward) == (num_steps(seed), episodes[seed].total_reward)
        assert (filmed.revision, filmed.versions, filmed.is_whole) == ("random-1", {"numpy": "1"}, True)
        frames = list(read_mp4(filmed.path(tmp_path)))
        steps = [round(float(frame.mean()) / 40) for frame in frames]
        assert steps == list(range(0, num_steps(seed) + 1, pace(DRAWN.domain)[0]))
        assert filmed.num_frames == len(frames)


def test_a_film_without_what_it_shows_or_the_reverse_is_none(tmp_path: Path) -> None:
    film = Film(DRAWN, [1, 2], tmp_path)
    list(film.of(rollout(DRAWN, RandomPolicy(DRAWN), [1, 2], 1, film.listen), "random-1", {}))
    (tmp_path / "1.mp4").unlink()
    (tmp_path / "2.json").unlink()
    assert films_in(tmp_path) == {}
    assert films_in(tmp_path / "missing") == {}


def test_an_environment_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    film = Film(FAKE_COUNT, [1], tmp_path)
    with pytest.raises(UserError, match=r"fake-count cannot be drawn.*--video-episodes 0"):
        list(rollout(FAKE_COUNT, RandomPolicy(FAKE_COUNT), [1], 1, film.listen))
