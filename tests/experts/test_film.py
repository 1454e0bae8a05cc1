from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experts.film import FilmConfig, film, film_expert, missing_films
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.media.film import Film, films_in
from pipeline.run_layout import RunLayout
from pipeline.seeds import seeds_of
from tests.fakes import DRAWN, store_network, store_random, write_measurement

pytestmark = pytest.mark.usefixtures("nothing_embedded")
SEEDS = seeds_of("evaluate", 2)


def film_agent(out: Path, task: Task = DRAWN) -> None:
    from experts.scripted.random_policy import RandomPolicy

    film = Film(task, SEEDS, RunLayout(out).agent_films(task.name))
    list(film.of(rollout(task, RandomPolicy(task), SEEDS, 2, film.listen), "agent", {}))


def test_the_best_measured_expert_is_filmed_on_the_seeds_of_the_agent(tmp_path: Path) -> None:
    film_agent(tmp_path)
    write_measurement(store_network(tmp_path, DRAWN, 0.1), DRAWN, [1, 2])
    best = store_network(tmp_path, DRAWN, 0.9)
    write_measurement(best, DRAWN, [8, 9])
    write_measurement(store_random(tmp_path, DRAWN), DRAWN, [20, 21])
    (job,) = missing_films(FilmConfig(out=tmp_path), [DRAWN])
    assert film_expert(job) == 2
    found = films_in(RunLayout(tmp_path).expert_films(DRAWN.name, best.record.revision))
    assert list(found) == SEEDS
    assert {filmed.revision for filmed in found.values()} == {best.record.revision}
    assert missing_films(FilmConfig(out=tmp_path), [DRAWN]) == []


def test_only_what_is_missing_or_made_with_other_packages_is_filmed(tmp_path: Path) -> None:
    film_agent(tmp_path)
    expert = store_network(tmp_path, DRAWN)
    write_measurement(expert, DRAWN, [8, 9])
    (job,) = missing_films(FilmConfig(out=tmp_path), [DRAWN])
    film_expert(job)
    path = RunLayout(tmp_path).expert_films(DRAWN.name, expert.record.revision) / f"{SEEDS[1]}.json"
    path.unlink()
    assert [job.seeds for job in missing_films(FilmConfig(out=tmp_path), [DRAWN])] == [(SEEDS[1],)]
    newer = replace(DRAWN, packages=("numpy", "pyarrow"))
    assert missing_films(FilmConfig(out=tmp_path), [newer]) == []  # nobody is measured with these packages


def test_a_task_without_films_of_the_agent_or_without_an_expert_is_left_out(tmp_path: Path) -> None:
    write_measurement(store_network(tmp_path, DRAWN), DRAWN, [8, 9])
    assert missing_films(FilmConfig(out=tmp_path), [DRAWN]) == []
    film_agent(tmp_path / "other")
    assert missing_films(FilmConfig(out=tmp_path / "other"), [DRAWN]) == []


def test_where_nothing_is_evaluated_it_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no evaluation in .*; run `jat evaluate` with the same --out first"):
        film(FilmConfig(out=tmp_path), [DRAWN])
    film_agent(tmp_path)
    with pytest.raises(UserError, match=r"run `jat evaluate --name early`"):
        film(FilmConfig(out=tmp_path, name="early"), [DRAWN])
    film(FilmConfig(out=tmp_path), [DRAWN])  # nobody is measured, so nobody is filmed: that is no error
