from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from experts.store import (
    StoredExpert,
    TrainingPoint,
    ensure_in_store,
    read_arrays,
    read_expert,
    stored_experts,
    write_expert,
)
from experts.training import read_curve
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from tests.fakes import FAKE_COUNT, store_network, store_random, write_measurement

pytestmark = pytest.mark.usefixtures("nothing_embedded")


@pytest.fixture
def embedded(nothing_embedded: Path, tmp_path: Path) -> Path:
    """An embedded store with one measured network."""
    expert = store_network(tmp_path / "elsewhere", action=0.75, curve=[TrainingPoint(10, 1.5, -2.25)])
    write_measurement(expert, FAKE_COUNT, [1, 2])
    (tmp_path / "elsewhere" / "experts").rename(nothing_embedded)
    return nothing_embedded


def states(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
    }  # fmt: skip


def test_a_network_comes_back_with_its_arrays_and_curve(tmp_path: Path) -> None:
    points = [TrainingPoint(100, 1.5, -2.25), TrainingPoint(200, 3.0, 7.5)]
    expert = store_network(tmp_path, action=0.5, curve=points)
    assert re.fullmatch(r"ppo-[0-9a-f]{8}", expert.record.revision)
    assert expert.folder == tmp_path / "experts" / "fake-count" / expert.record.revision
    assert read_expert(expert.folder) == expert
    arrays = read_arrays(expert)
    torch.testing.assert_close(arrays["head.bias"], torch.tensor([0.5, 0.5]))
    assert sorted(arrays) == ["head.bias", "head.weight", "log_std"]
    assert read_curve(expert.folder / "curve.csv") == points


def test_the_same_network_is_written_once_and_another_beside_it(tmp_path: Path) -> None:
    first = store_network(tmp_path, action=0.5)
    before = states(first.folder)
    assert store_network(tmp_path, action=0.5) == first
    other = store_network(tmp_path, action=0.6)
    assert states(first.folder) == before
    assert stored_experts(tmp_path, "fake-count") == sorted([first, other], key=lambda e: e.folder.name)


def test_a_longer_training_with_the_same_best_network_renews_its_record_and_not_its_weights(tmp_path: Path) -> None:
    first = store_network(tmp_path)
    assert first.record.network is not None
    arrays = read_arrays(first)

    def store(steps: int) -> StoredExpert:
        network = first.record.network
        assert network is not None
        training, curve = {"steps": steps}, [TrainingPoint(steps, 1.0, 2.0)]
        return write_expert(tmp_path, "fake-count", "ppo", network, arrays, f"{steps} steps", training, None, curve)

    before = states(tmp_path)
    assert store(10).folder == first.folder and states(tmp_path) == before  # of the first no steps are known
    write_json(first.folder / "expert.json", {**read_json(first.folder / "expert.json"), "training": {"steps": 10}})
    weights = states(first.folder)["weights.safetensors"]
    for steps, expected in ((20, 20), (15, 20), (30, 30)):  # a shorter one has nothing to add
        store(steps)
        assert read_expert(first.folder).record.training == {"steps": expected}
        assert [point.steps for point in read_curve(first.folder / "curve.csv")] == [expected]
    assert states(first.folder)["weights.safetensors"] == weights


def test_the_run_s_own_folder_shadows_the_embedded_one(tmp_path: Path, embedded: Path) -> None:
    (there,) = stored_experts(tmp_path, "fake-count")
    assert there.folder.parent == embedded / "fake-count"
    here = store_network(tmp_path, action=0.75)
    assert here.record.revision == there.record.revision
    assert [expert.folder for expert in stored_experts(tmp_path, "fake-count")] == [here.folder]


def test_an_embedded_expert_is_copied_whole_and_only_once(tmp_path: Path, embedded: Path) -> None:
    (there,) = stored_experts(tmp_path, "fake-count")
    kept = ensure_in_store(tmp_path, there)
    assert kept.folder == tmp_path / "experts" / "fake-count" / there.record.revision
    names = ["curve.csv", "expert.json", "measurement.json", "weights.safetensors"]
    assert sorted(path.name for path in kept.folder.iterdir()) == names
    for name in names:
        assert (kept.folder / name).read_bytes() == (there.folder / name).read_bytes()
    before = states(tmp_path / "experts")
    write_json(there.folder / "measurement.json", {})
    assert ensure_in_store(tmp_path, there) == ensure_in_store(tmp_path, kept) == kept
    assert states(tmp_path / "experts") == before


def test_a_copy_that_was_interrupted_is_not_an_expert_and_is_made_again(
    tmp_path: Path, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there,) = stored_experts(tmp_path, "fake-count")

    def killed(source: Path, target: Path, **_: Any) -> None:
        (target / "expert.json").write_bytes((source / "expert.json").read_bytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_in_store(tmp_path, there)
    assert stored_experts(tmp_path, "fake-count") == [there]
    assert read_arrays(ensure_in_store(tmp_path, there)).keys() == read_arrays(there).keys()
    assert [path.name for path in (tmp_path / "experts" / "fake-count").iterdir()] == [there.record.revision]


def test_a_folder_left_without_a_record_is_replaced(tmp_path: Path) -> None:
    folder = store_network(tmp_path).folder
    (folder / "expert.json").unlink()
    (folder / "weights.safetensors").write_bytes(b"half")
    assert stored_experts(tmp_path, "fake-count") == []
    assert read_arrays(store_network(tmp_path)).keys() == {"head.weight", "head.bias", "log_std"}


def test_a_rule_is_kept_as_a_record_without_network(tmp_path: Path) -> None:
    expert = store_random(tmp_path)
    assert [path.name for path in expert.folder.iterdir()] == ["expert.json"]
    raw = read_json(expert.folder / "expert.json")
    assert (raw["kind"], raw["revision"], raw["network"]) == ("random", "random-1", None)
    assert read_expert(expert.folder) == expert


def test_a_folder_without_a_record_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no expert: it has no expert\.json"):
        read_expert(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"network": null, "surprise": 1}', '{"network": {"hidden": 3, "x": 1}}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "expert.json").write_text(text)
    with pytest.raises(UserError, match=r"expert\.json is not a record of an expert"):
        read_expert(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_damaged_weights_are_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    expert = store_network(tmp_path)
    path = expert.folder / "weights.safetensors"
    content = {"missing": None, "truncated": path.read_bytes()[:-4], "foreign": b"PK\x03\x04 not this"}[damage]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.safetensors cannot be read .*remove {expert.folder} and run"):
        read_arrays(StoredExpert(expert.record, expert.folder))
