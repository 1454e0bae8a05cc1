from __future__ import annotations

from pathlib import Path

from pipeline.files import write_json
from pipeline.storage.manifest import DatasetManifest, FileEntry, SplitManifest, TaskManifest


def test_a_dataset_manifest_comes_back_equal_from_its_file(tmp_path: Path) -> None:
    def split(num_successes: int | None) -> SplitManifest:
        return SplitManifest(
            num_episodes=3,
            num_steps=9,
            num_rejected=1,
            num_successes=num_successes,
            mean_return=0.1,
            data=(FileEntry("data/a/train-00000-of-00001.parquet", 10, "aa"),),
            episodes=(FileEntry("episodes/a/train-00000-of-00001.parquet", 20, "bb"),),
        )

    tasks = {
        "a": TaskManifest("bot", "1", {"numpy": "2"}, {"train": split(2), "test": split(0)}),
        "b": TaskManifest("random", "", {}, {"train": split(None)}),
    }
    manifest = DatasetManifest("digest", tasks)
    write_json(tmp_path / DatasetManifest.FILE_NAME, manifest)
    assert DatasetManifest.load(tmp_path / "manifest.json") == manifest
