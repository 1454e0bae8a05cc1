"""The doctor finds a planted fault of each kind among 10,000 episodes, and none in a clean dataset of as many."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.doctor.checks import Finding
from collectors.dataset.doctor.doctor import DoctorConfig, examine
from collectors.dataset.surgery.select import RemoveConfig, remove_episodes
from collectors.dataset.validate import ValidateConfig, validate
from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import Provenance, write_shard
from tests.fakes import FAKE_COUNT, FAKE_GRID, store_random, write_measurement

pytestmark = pytest.mark.slow

TEST = 1_000_000_000
TASKS = tuple(dataclasses.replace(FAKE_COUNT, name=f"fake-{name}") for name in ("one", "two", "three", "four", "five"))
ONE, TWO, THREE, FOUR, FIVE = TASKS
TABLE = (*TASKS, FAKE_GRID)
COUNTS = dict(zip(TASKS, (4000, 2000, 2000, 1000, 1000), strict=True))
Change = Callable[[Task, Episode], Episode]


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch, nothing_embedded: Path) -> None:
    monkeypatch.setattr("collectors.dataset.card.card._plot", lambda path, domain: False)


def clean(task: Task, seed: int) -> Episode:
    """Random numbers: about normal returns, 5 to 9 steps, successes that earn more, actions within the bounds."""
    random = np.random.default_rng((seed, TABLE.index(task)))
    length, success = int(random.integers(5, 10)), bool(random.random() < 0.8)
    rewards = random.normal(10 + 2 * success, 1, length)
    rewards *= (100 + 20 * success + random.normal(0, 5)) / rewards.sum()
    return Episode(
        seed,
        random.normal(size=(length, 4)).astype(np.float32),
        None,
        random.uniform(-0.9, 0.9, (length, 2)).astype(np.float32),
        rewards.astype(np.float32),
        "terminated",
        success,
    )


def planted(task: Task, episode: Episode) -> Episode:
    """One fault of each kind: far values and copies in ``one``, ``two`` is of ``one``, the others in ``three``."""
    change = dataclasses.replace
    if task is ONE and episode.seed in (7, 8):
        return change(clean(ONE, 3), seed=episode.seed)
    if task is ONE and episode.seed == 100:
        return change(episode, rewards=episode.rewards * 40)
    if task is ONE and episode.seed == 200:
        return change(episode, **{n: np.concatenate([getattr(episode, n)] * 40) for n in ("observations", "actions")},
                      rewards=np.tile(episode.rewards / 40, 40))  # fmt: skip
    if task is TWO:
        return change(clean(ONE, episode.seed + 1000), seed=episode.seed)
    if task is THREE:
        actions, observations = episode.actions.copy(), episode.observations.copy()
        actions[:, 1] = np.sign(actions[:, 1])
        observations[:, 2] = 3.5
        return change(episode, actions=actions, observations=observations, success=not episode.success)
    return episode


def write(out: Path, counts: dict[Task, int], change: Change) -> Path:
    for task, count in counts.items():
        revision = store_random(out, task).record.revision
        for split, first, number in (("train", 0, count - count // 10), ("test", TEST, count // 10)):
            job = ShardJob(task, split, first, number, "random")
            episodes: Iterator[Episode] = (change(task, clean(task, seed)) for seed in job.seeds)
            write_shard(out / "shards", job, revision, episodes, lambda seed, r=revision: Provenance("random", r))
    build_dataset(DatasetConfig(out=out), TABLE)
    return out / "dataset"


def measure(out: Path, task: Task, mean: float) -> None:
    write_measurement(store_random(out, task), task, np.random.default_rng(0).normal(mean, 10, 100).tolist())


def kinds(findings: list[Finding]) -> Counter[tuple[str, str]]:
    return Counter((finding.task, finding.kind) for finding in findings)


def test_a_fault_of_each_kind_is_found_among_10_000_episodes(tmp_path: Path) -> None:
    counts = COUNTS | {FIVE: 40}
    dataset = write(tmp_path, counts, planted)
    assert sum(counts.values()) > 9000
    for task in counts:
        measure(tmp_path, task, 116 if task is not FOUR else 150)
    findings = examine(DoctorConfig(dataset, card=True), TABLE)
    assert kinds(findings) == Counter(
        [
            ("fake-one", "equal episodes"),
            ("fake-one", "unusual return"),
            ("fake-one", "unusual length"),
            ("fake-two", "equal tasks"),
            ("fake-three", "constant dimension"),
            ("fake-three", "clipped actions"),
            ("fake-three", "success against return"),
            ("fake-four", "return unlike the measurement"),
            ("fake-five", "imbalance"),
        ]
    )
    by_kind = {finding.kind: finding for finding in findings}
    assert "`jat dataset remove --task fake-one --seeds 7,8`" in by_kind["equal episodes"].advice
    assert "--task fake-one --seed 100`" in by_kind["unusual return"].advice
    assert "--task fake-one --seed 200`" in by_kind["unusual length"].advice
    assert by_kind["constant dimension"].what == "observation 2 of 4"
    assert by_kind["clipped actions"].what == "at a bound in most steps: dimension 1 (100%)"
    assert by_kind["equal tasks"].what.endswith("are those of fake-one")
    card = (dataset / "README.md").read_text()
    assert all(f"| {finding.task} | {finding.kind} |" in card for finding in findings)
    assert validate(ValidateConfig(dataset, "fake-five"), TABLE).kinds == {}
    # What is advised helps.
    remove_episodes(RemoveConfig(dataset, tmp_path / "mended", task="fake-one", seeds="7,8,100,200"), TABLE)
    left = kinds(examine(DoctorConfig(tmp_path / "mended", "fake-one", tmp_path), TABLE))
    assert left == Counter()


def test_nothing_is_found_in_10_000_clean_episodes(tmp_path: Path) -> None:
    dataset = write(tmp_path, COUNTS, lambda task, episode: episode)
    assert sum(COUNTS.values()) == 10_000
    for task in COUNTS:
        measure(tmp_path, task, 116)
    assert "Nothing was found." in (dataset / "README.md").read_text()
    assert examine(DoctorConfig(dataset), TABLE) == []


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    dataset = write(tmp_path, {ONE: 20, TWO: 20}, lambda task, episode: episode)
    for config, reason in (
        (DoctorConfig(tmp_path), "is no dataset: it has no manifest.json"),
        (DoctorConfig(dataset, "toy"), "has no episodes of toy; it has fake-one, fake-two"),
        (DoctorConfig(dataset, "fake-one", card=True), "--card is about all tasks of the dataset"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            examine(config, TABLE)
        assert "\n" not in str(caught.value)
    (dataset / "README.md").write_text("my own card")
    with pytest.raises(UserError, match="has no section on quality between"):
        examine(DoctorConfig(dataset, card=True), TABLE)
    path = next((dataset / "data" / "fake-two").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"the dataset is damaged: `jat dataset validate` lists everything that"):
        examine(DoctorConfig(dataset), TABLE)
