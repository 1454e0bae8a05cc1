"""A folder on a disk beside a store, here fsspec's in memory: what moves, and what a reader finds after a kill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import location
from pipeline.publishing.mirror import Mirror


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Any:
    """An empty place, one for each test."""
    return location(f"memory://{request.node.name}/run")


def write(root: Path, **files: str) -> None:
    """Files ``a__b=text`` as ``a/b``, each younger than the one before."""
    for number, (name, text) in enumerate(files.items()):
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(number * 10**9, number * 10**9))


def read(root: Any) -> dict[str, str]:
    if isinstance(root, Path):
        return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("[!.]*") if p.is_file()}
    prefix = root.path.rstrip("/") + "/"
    names = [path.removeprefix(prefix) for path in root.fs.find(root.path)]
    return {name: (root / name).read_text() for name in names if name[0] != "."}


def test_what_one_machine_made_another_goes_on_with(store: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first, train__a="1", train__deep__b="2", train__manifest="done", train__lock="", train__cache__big="x")
    write(first, other="not of the stage")
    assert Mirror(store, first, ["train/cache"]).send(["train"]) == 3
    assert read(store) == {"train/a": "1", "train/deep/b": "2", "train/manifest": "done"}
    mirror = Mirror(store, second)
    assert mirror.fetch(["train"]) == 3
    assert read(second) == read(store)
    write(second, train__a="longer")
    (second / "train" / "deep" / "b").unlink()
    assert mirror.send(["train"]) == 1
    assert read(store) == {"train/a": "longer", "train/manifest": "done"}


def test_no_file_moves_twice(store: Any, tmp_path: Path) -> None:
    write(tmp_path, train__a="1", train__b="2")
    assert [Mirror(store, tmp_path).send(["train"]) for _ in range(2)] == [2, 0]
    assert Mirror(store, tmp_path).fetch(["train"]) == 0
    os.utime(tmp_path / "train" / "a", ns=(5, 5))  # written again, with the same content
    assert Mirror(store, tmp_path).send(["train"]) == 0
    assert Mirror(store, tmp_path).send(["train"]) == 0


def test_files_are_sent_in_the_order_they_were_written_in(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, train__z="1", train__deep__y="2", train__a="last")
    sent = []
    put = type(store.fs).put_file
    monkeypatch.setattr(
        type(store.fs), "put_file", lambda fs, local, remote: sent.append(Path(local).name) or put(fs, local, remote)
    )
    Mirror(store, tmp_path).send(["train"])
    assert sent == ["z", "y", "a", "train.json"]  # then the list of them


def test_of_a_folder_that_was_being_sent_nothing_new_is_fetched(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first, train__step_1="whole", train__log="one")
    Mirror(store, first).send(["train"])
    write(first, train__step_2__model="new", train__step_2__optimizer="new")
    put = type(store.fs).put_file

    def killed(fs: Any, local: str, remote: str) -> None:
        if local.endswith("optimizer"):
            raise KeyboardInterrupt
        put(fs, local, remote)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(store.fs), "put_file", killed)
        Mirror(store, first).send(["train"])
    assert "train/step_2/model" in read(store)
    mirror = Mirror(store, second)
    mirror.fetch(["train"])
    assert read(second) == {"train/step_1": "whole", "train/log": "one"}
    # Going on there, the half goes.
    write(second, train__step_1="again")
    mirror.send(["train"])
    assert read(store) == {"train/step_1": "again", "train/log": "one"}


def test_what_is_not_in_the_store_any_more_goes_from_the_disk(store: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first, train__a="1", train__b="2")
    mirror = Mirror(store, first)
    mirror.send(["train"])
    Mirror(store, second).fetch(["train"])
    (first / "train" / "b").unlink()
    mirror.send(["train"])
    write(second, train__of_a_killed_process="3")
    assert Mirror(store, second).fetch(["train"]) == 0
    assert read(second) == {"train/a": "1"}


def test_in_a_shared_folder_nothing_of_others_is_touched(store: Any, tmp_path: Path) -> None:
    (store / "experts").mkdir(parents=True, exist_ok=True)
    (store / "experts" / "weights").write_text("theirs")
    mirror = Mirror(store, tmp_path)
    assert mirror.fetch(["experts"]) == 1
    write(tmp_path, experts__film="ours")
    (tmp_path / "experts" / "weights").unlink()
    assert mirror.add(["experts"]) == 1
    assert read(store) == {"experts/weights": "theirs", "experts/film": "ours"}
    assert mirror.add(["experts"]) == 0


def test_a_folder_between_two_names_is_not_taken_for_one_that_is_gone(store: Any, tmp_path: Path) -> None:
    write(tmp_path, dataset__a="1")
    mirror = Mirror(store, tmp_path)
    mirror.send(["dataset"])
    (tmp_path / "dataset").rename(tmp_path / ".retired")
    assert mirror.send(["dataset"]) == 0
    assert read(store) == {"dataset/a": "1"}


def test_single_files_can_be_fetched(store: Any, tmp_path: Path) -> None:
    write(tmp_path / "a", dataset__manifest="m", dataset__data__large="d")
    Mirror(store, tmp_path / "a").send(["dataset"])
    assert Mirror(store, tmp_path / "b").fetch(["dataset/manifest", "dataset/none"]) == 1
    assert read(tmp_path / "b") == {"dataset/manifest": "m"}
