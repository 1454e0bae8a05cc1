from __future__ import annotations

from pathlib import Path

import pytest

from experts.scripted.random_policy import RandomPolicy
from pipeline.envs.rollout import rollout
from pipeline.media.film import Film, films_in, missing_failure, pace
from pipeline.media.video import read_mp4
from pipeline.scoring.measurement import EpisodeResult
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


def test_an_environment_that_cannot_be_drawn_is_named_once_and_played_without_films(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film = Film(FAKE_COUNT, [1, 2], tmp_path)
    played = rollout(FAKE_COUNT, RandomPolicy(FAKE_COUNT), [1, 2], 1, film.listen)
    assert [episode.seed for episode in film.of(played, "random-1", {})] == [1, 2]
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("fake-count cannot be drawn: its environment Count-v0 has no way to render")
    assert line.endswith("; its films are left out") and not list(tmp_path.iterdir())


def played(*outcomes: tuple[float, bool | None], rejected: int | None = None) -> list[EpisodeResult]:
    """Episodes of the seeds 0, 1, ... with their returns and successes; one of them may be rejected."""
    return [
        EpisodeResult(seed, earned, 9, success, "not finite" if seed == rejected else None)
        for seed, (earned, success) in enumerate(outcomes)
    ]


@pytest.mark.parametrize(
    ("outcomes", "filmed", "expected"),
    [
        (played((1.0, True), (5.0, False), (3.0, False)), [0], 2),  # the worse failure, although a success earns less
        (played((1.0, True), (5.0, False), (3.0, False)), [1], None),  # a failure is filmed
        (played((4.0, True), (5.0, True), (3.0, True)), [0, 1], 2),  # no failure: the least return
        (played((4.0, True), (5.0, True), (3.0, True)), [2], None),
        (played((4.0, None), (5.0, None), (3.0, None)), [0], 2),  # no notion of success
        (played((4.0, None), (3.0, None), rejected=1), [0], None),  # a rejected episode is no failure
        (played((4.0, None), rejected=0), [], None),
        ([], [], None),
    ],
)
def test_what_films_would_not_show_is_found(
    outcomes: list[EpisodeResult], filmed: list[int], expected: int | None
) -> None:
    assert missing_failure(outcomes, filmed) == expected
