from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from collectors.browser.app import make_app
from collectors.dataset.build import DatasetConfig, build_dataset
from pipeline.envs.episode import Episode
from pipeline.files import write_json
from pipeline.media.film import Filmed
from pipeline.media.video import write_mp4
from pipeline.scoring.measurement import Measurement
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard
from tests.fakes import DRAWN, FAKE_GRID, DrawnEnv, expected_episode

PORT = 8765
TASKS = (DRAWN, FAKE_GRID)
NAME = DRAWN.name
EVIL = "<script>alert(1)</script>"


def make_browsed(out: Path, num_train: int = 120) -> None:
    """A run with a dataset of two tasks in which seed 7 was rejected, and an evaluation of one, without Ray."""
    for task in TASKS:
        for split, first_seed, count in (("train", 0, num_train), ("test", 1_000_000_000, 4)):
            job = ShardJob(task, split, first_seed, count, "random")
            episodes = [expected_episode(task, seed) for seed in job.seeds]
            write_shard(out / "shards", job, "1", [_rejected(e) if e.seed == 7 else e for e in episodes])
    build_dataset(DatasetConfig(out=out), TASKS)
    seeds, rejected = [2_000_000_000, 2_000_000_001, 2_000_000_002], [None, None, EVIL]
    played = Measurement(
        NAME, "agent", "w at temperature 1", {}, seeds, [3.0, 1.0, 0.0], [2, 2, 1], [True, False, False], list(rejected)
    )
    write_json(out / "evaluation" / f"{NAME}.json", played)
    for who, revision, folder in (
        ("agent", played.revision, out / "evaluation" / "films" / NAME),
        ("expert", "random-1", out / "experts" / NAME / "random-1" / "films"),
    ):
        film = Filmed(NAME, seeds[1], revision, {}, 1.0 if who == "agent" else 9.0, 2, 3, who == "expert", None)
        environment = DrawnEnv(DRAWN)
        environment.reset(seed=1)
        write_mp4(film.path(folder), [environment.render()] * 3, 5)
        write_json(folder / f"{film.seed}.json", film)


def _rejected(episode: Episode) -> Episode:
    return replace(episode, rejected=EVIL)


@pytest.fixture(scope="session")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browsed")
    make_browsed(out)
    return out


@pytest.fixture
def client(browsed: Path, tmp_path: Path) -> Iterator[TestClient]:
    app = make_app(browsed, PORT, tmp_path, TASKS)
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        yield client
