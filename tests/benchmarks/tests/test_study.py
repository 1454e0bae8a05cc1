from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.files import read_json
from tests.benchmarks import ablations, study, sweep
from tests.benchmarks.study import StudyConfig, StudyJob, Variant, bootstrap, run_study, run_training, write_between
from tests.fakes import FAKE_TASKS
from tests.trainer.conftest import tiny_config, write_references
from trainer.config import RECIPES, BaseModelConfig, TrainConfig

VARIANTS = [
    Variant("recipe", {}, "the recipe"),
    Variant("narrow", {"model.hidden_size": 16}, "narrow"),
    Variant("raw", {"normalise": False}, "raw"),
]


def tiny_base() -> TrainConfig:
    model = BaseModelConfig(
        hidden_size=32, num_layers=1, num_heads=2, window_steps=3, vocab_size=320, discrete_encoder="flat", cell_size=4
    )
    return dataclasses.replace(tiny_config(Path("unused")), model=model, dtype="auto")


@pytest.fixture
def config(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """A study of two seeds whose trainings run here, one after the other, at speeds measured before."""

    def run_here(function: Any, jobs: Sequence[StudyJob], workers: int) -> Iterator[tuple[StudyJob, float]]:
        return ((job, function(job)) for job in jobs)

    write_references(run_dir)
    monkeypatch.setitem(RECIPES, "tiny", tiny_base)
    monkeypatch.setattr(study, "run_jobs", run_here)
    return StudyConfig(task="*", out=run_dir, training="tiny", seconds=1, seeds=2, episodes=2)


def set_speeds(folder: Path, speeds: dict[str, float]) -> None:
    study.write_json(folder / "speeds.json", speeds)


def test_variants_get_the_same_seconds_and_differ_by_their_change_alone(config: StudyConfig) -> None:
    set_speeds(config.out / "s", {"recipe": 0.25, "narrow": 0.125, "raw": 0.5})
    results = run_study("s", VARIANTS, config, FAKE_TASKS)
    assert [(r.variant, r.steps, r.seeds) for r in results] == [("recipe", 4, 2), ("narrow", 8, 2), ("raw", 2, 2)]
    settings = {
        (v.name, seed): read_json(config.out / "s" / v.name / f"seed-{seed}" / "train" / "identity.json")
        for v in VARIANTS
        for seed in range(2)
    }
    for (name, seed), identity in settings.items():
        assert identity["seed"] == seed
        assert identity["model"]["hidden_size"] == (16 if name == "narrow" else 32)
        assert identity["normalise"] is (name != "raw")
    assert results[0].difference is None
    difference = results[1].difference
    assert difference is not None
    assert difference.mean == pytest.approx(results[1].score.mean - results[0].score.mean)
    assert difference.low <= difference.mean <= difference.high
    assert set(results[0].tasks) == {task.name for task in FAKE_TASKS}
    assert len(read_json(config.out / "s" / "results.json")) == 3


def test_a_study_run_again_trains_only_what_is_missing(config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    set_speeds(config.out / "s", {v.name: 0.5 for v in VARIANTS})
    trained: list[tuple[str, int]] = []

    def note(job: StudyJob) -> float:
        trained.append((job.variant, job.seed))
        return run_training(job)

    monkeypatch.setattr(study, "run_training", note)
    first = run_study("s", VARIANTS, dataclasses.replace(config, variants="recipe", seeds=1), FAKE_TASKS)
    assert [r.variant for r in first] == ["recipe"]
    run_study("s", VARIANTS, dataclasses.replace(config, variants="recipe,raw"), FAKE_TASKS)
    assert trained == [("recipe", 0), ("raw", 0), ("recipe", 1), ("raw", 1)]
    again = run_study("s", VARIANTS, dataclasses.replace(config, variants="raw"), FAKE_TASKS)
    assert len(trained) == 4
    assert [r.variant for r in again] == ["recipe", "raw"]


def test_speeds_are_measured_once(config: StudyConfig) -> None:
    settings = dataclasses.replace(config, variants="recipe", seeds=1)
    path = config.out / "s" / "speeds.json"
    set_speeds(path.parent, {"narrow": 123.0})
    tasks = {"recipe": FAKE_TASKS}
    training = VARIANTS[0].apply(dataclasses.replace(tiny_base(), out=settings.out, dataset=settings.out / "dataset"))
    measured = study._measure_speeds(path, {"recipe": training}, tasks)
    assert 0 < measured["recipe"] < 1
    assert measured["narrow"] == 123.0
    assert study._measure_speeds(path, {"recipe": training}, tasks) == measured


def test_a_study_of_other_settings_is_refused(config: StudyConfig) -> None:
    set_speeds(config.out / "s", {"recipe": 1.0})
    few = dataclasses.replace(config, variants="recipe", seeds=1)
    run_study("s", VARIANTS, few, FAKE_TASKS)
    with pytest.raises(UserError, match="episodes was 2, is 3"):
        run_study("s", VARIANTS, dataclasses.replace(few, episodes=3), FAKE_TASKS)


def test_bad_input_is_refused_by_name(config: StudyConfig) -> None:
    with pytest.raises(UserError, match="no variant wide; there are: recipe, narrow, raw"):
        run_study("s", VARIANTS, dataclasses.replace(config, variants="wide"), FAKE_TASKS)
    with pytest.raises(UserError, match=r"--training .huge. is unknown; allowed: .*base"):
        StudyConfig(training="huge")
    with pytest.raises(UserError, match="--seeds is 0"):
        StudyConfig(seeds=0)
    with pytest.raises(UserError, match=r"variant odd: base networks differ: .*no_such"):
        Variant("odd", {"model.no_such": 1}, "").apply(tiny_base())
    with pytest.raises(UserError, match="--sweep 'width' is unknown; there is: kappa"):
        sweep.SweepConfig(sweep="width")


def test_the_interval_is_wider_with_seeds_that_disagree() -> None:
    generator = np.random.default_rng(0)
    alike = [[generator.normal(0.5, 0.1, 20) for _ in range(3)] for _ in range(3)]
    apart = [[scores + shift for scores in run] for run, shift in zip(alike, (-0.3, 0.0, 0.3), strict=True)]
    assert np.std(bootstrap(alike)) < 0.03
    assert np.std(bootstrap(apart)) > 0.1
    assert abs(bootstrap(apart).mean() - 0.5) < 0.03


def test_every_ablation_changes_the_recipe_and_is_a_valid_training() -> None:
    recipe = RECIPES["base"]()
    assert isinstance(recipe.model, BaseModelConfig)
    variants = ablations.make_variants(recipe.model)
    assert len({v.name for v in variants}) == len(variants)
    applied = [v.apply(recipe) for v in variants]
    assert applied[0] == recipe
    assert all(config != recipe for config in applied[1:])
    compared = {name.removeprefix("model.") for v in variants for name in v.changes}
    choices = {f.name for f in dataclasses.fields(BaseModelConfig)} - {
        "architecture", "num_heads", "observation_limit", "vocab_size", "discrete_encoder", "cell_size",
        "returns",  # set by --objective, which tests.benchmarks.recipes compares
    }  # fmt: skip
    assert choices <= compared


@pytest.mark.parametrize("training", ["base", "jat-small"])
def test_kappa_is_swept_with_weights_that_sum_to_one(training: str) -> None:
    recipe = RECIPES[training]()
    models = [v.apply(recipe).model for v in sweep.make_variants(training)]
    assert [m.observation_loss_coef for m in models] == [0.0, 0.005, 0.05, 0.5]
    if training == "jat-small":
        assert all(m.observation_loss_coef + m.action_loss_coef == 1 for m in models)  # type: ignore[union-attr]


def test_the_tables_and_the_plot_show_every_variant(config: StudyConfig, tmp_path: Path) -> None:
    set_speeds(config.out / "s", {v.name: 0.5 for v in VARIANTS})
    results = run_study("s", VARIANTS, config, FAKE_TASKS)
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- ABLATIONS -->\nold\n<!-- end -->\nafter\n")
    write_between(document, "ABLATIONS", ablations.describe(results, config))
    lines = document.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:] == ["| recipe", "| narrow", "| raw"]
    with pytest.raises(UserError, match="has no lines <!-- OTHER -->"):
        write_between(document, "OTHER", "")
    sweep.plot(results, "kappa", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
