"""Episodes from a Hub on loopback, by the clients that read from the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collectors.dataset.importing.imports import folder_of
from pipeline.storage.manifest import ShardManifest
from pipeline.storage.shards import finished_shards
from tests.collectors.dataset.importing.test_imports import HOPPER, data_rows, hopper_rows
from tests.hub import LoopbackHub, serve_hub
from tests.jat_sources import write_jat

IMPORT = """
import json, sys
from pathlib import Path
from collectors.dataset.importing.imports import ImportConfig, import_jobs, import_shard
from pipeline.errors import UserError
from pipeline.envs.registry import select_tasks
settings = json.loads(sys.argv[1])
config = ImportConfig(**{**settings, "out": Path(settings["out"])})
try:
    for job in import_jobs(config, select_tasks(config.task), config.out / "imported"):
        import_shard(job)
except UserError as error:
    print(error)
"""


def write(folder: Path, first: int = 0) -> Path:
    rows = {"train": hopper_rows(12, first), "test": hopper_rows(3, 20)}
    return write_jat(folder, {HOPPER.name: rows}, num_files=3)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    folder = tmp_path_factory.mktemp("hub")
    with serve_hub(folder / "server") as hub:
        hub.upload("owner/jat", write(folder / "jat"), folder / "home")
        yield hub


def import_from(hub: LoopbackHub, out: Path, **settings: Any) -> str:
    found = {"source": "owner/jat", "task": HOPPER.name, "out": str(out), "shard_episodes": 4, **settings}
    return hub.run_script(IMPORT, json.dumps(found), home=out / "home")


def shards_of(out: Path, source: str = "owner/jat") -> list[ShardManifest]:
    return finished_shards(out / "imported" / HOPPER.name, folder_of(source))


def test_a_repository_is_read_as_its_card_says_and_its_commit_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    assert import_from(hub, tmp_path) == ""
    assert data_rows(tmp_path, HOPPER) == hopper_rows(12)
    assert data_rows(tmp_path, HOPPER, "test") == hopper_rows(3, 20)
    commit = hub.repository()["branches"]["main"]
    assert {shard.source for shard in shards_of(tmp_path)} == {f"hub:owner/jat@{commit}"}


def test_of_a_few_episodes_only_their_files_are_asked_for(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.forget()
    assert import_from(hub, tmp_path, episodes=3) == ""
    assert data_rows(tmp_path, HOPPER) == hopper_rows(3)
    asked = {entry["request"].rpartition("/")[2] for entry in hub.log if ".parquet" in entry["request"]}
    assert asked == {"train-00000-of-00003.parquet", "test-00000-of-00003.parquet"}


def test_a_later_import_stays_at_the_commit_of_the_first(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.upload("owner/growing", write(tmp_path / "jat"), tmp_path / "home")
    assert import_from(hub, tmp_path, source="owner/growing", episodes=3) == ""
    hub.upload("owner/growing", write(tmp_path / "other", 40), tmp_path / "home")
    assert import_from(hub, tmp_path, source="owner/growing") == ""
    assert data_rows(tmp_path, HOPPER) == hopper_rows(12)
    assert "remove that folder to import anew" in import_from(hub, tmp_path, source="owner/growing@main")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "owner/nobody"}, "there is no public repository owner/nobody on the Hugging Face Hub"),
        ({"source": "owner/jat@v9"}, "owner/jat has no revision v9"),
        ({"task": "mujoco-ant"}, "owner/jat has nothing of mujoco-ant; it has mujoco-hopper"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    hub: LoopbackHub, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    assert message in import_from(hub, tmp_path, **settings)


def test_a_hub_out_of_reach_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    nobody = LoopbackHub(hub.process, "http://127.0.0.1:9", hub.folder)
    assert "owner/jat cannot be downloaded from the Hugging Face Hub" in import_from(nobody, tmp_path)
