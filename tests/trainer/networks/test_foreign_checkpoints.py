"""Checkpoints of strangers: refused in one line, before anything of the sizes they claim is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from tests.fakes import FAKE_COUNT
from tests.trainer.conftest import TINY
from tests.trainer.evaluation.test_playing import make_checkpoint
from trainer.checkpoint import load_optimizer_state, load_progress
from trainer.pretrained.folders import checkpoint_folder, locate
from trainer.pretrained.load import from_pretrained, save_pretrained


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "agent"
    save_pretrained(make_checkpoint([FAKE_COUNT], TINY), folder, "")
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound checkpoint, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def change(folder: Path, **changes: Any) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **changes})


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 10_000_000}, "num_layers is 10000000, not from 1 to 1,000"),
        ({"hidden_size": 2_000_000, "num_heads": 1}, r"is \[\d+, 50\], not \[\d+, 2000000\]"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000, not from 1"),
        ({"hidden_size": "x"}, "hidden_size is 'x', expected a whole number"),
        ({"num_heads": 0}, "num_heads is 0, not from 1"),
        ({"num_heads": 7}, "no multiple of 7 heads"),
        ({"observation_loss_coef": float("nan")}, "observation_loss_coef is nan"),
        ({"architecture": ["jat"]}, "unknown architecture"),
        ({"discrete_encoder": {}}, "discrete_encoder"),
    ],
)
def test_a_network_that_nobody_has_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    change(folder, model={**read_json(folder / "config.json")["model"], **changes})
    refused(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": []}, "the model is a list, expected an object"),
        ({"tasks": 7}, "tasks is 7, expected a list"),
        ({"tasks": ["../x"]}, r"task '\.\./x' is no name"),
        ({"tasks": []}, "0 tasks, 1 layouts"),
        ({"layouts": [{"observation": 1}]}, r"layouts\[0\]"),
        ({"contexts": {"<b>": 1}}, "is no name"),
        ({"context_steps": -1}, "a size is not from 0"),
        ({"step": "many"}, "step is 'many', expected a whole number"),
    ],
)
def test_a_config_of_wrong_types_or_names_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    change(folder, **changes)
    refused(folder, rf"config\.json.*{message}")


@pytest.mark.parametrize("text", ["[]", "7", '"tasks"', "[" * 100_000, "{", "\xff"])
def test_a_config_that_is_no_object_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, encoding="latin1")
    refused(folder, r"config\.json")


def test_files_beside_the_weights_that_are_cut_or_missing_are_named(folder: Path) -> None:
    for name in ("normalisers.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        refused(folder, rf"{name} is (damaged|no tokenizer)")
        (folder / name).unlink()
        refused(folder, f"has no {name}")
        (folder / name).write_bytes(whole)
    from_pretrained(folder)


def test_normalisers_of_other_tasks_or_sizes_are_refused(folder: Path) -> None:
    path = folder / "normalisers.safetensors"
    arrays = load_file(path)
    for changed in (
        {name: array for name, array in arrays.items() if "mean" not in name},
        {name: array[:1] for name, array in arrays.items()},
        {name: np.full_like(array, np.inf) for name, array in arrays.items()},
        {f"other{name}": array for name, array in arrays.items()},
    ):
        save_file(changed, path)
        refused(folder, r"normalisers\.safetensors does not fit its config\.json")


def test_a_tokenizer_with_more_ids_than_the_network_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"] |= {f"word{number}": 300 + number for number in range(100)}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    refused(folder, r"tokenizer\.json has 400 ids, the network embeddings for 320")


def test_files_of_a_training_that_are_damaged_are_named(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"PK\x03\x04")
    (folder / "training.json").write_text('{"identity": [], "step": "x"}')
    with pytest.raises(UserError, match=r"optimizer\.pt cannot be read .*resume from the one before it"):
        load_optimizer_state(folder)
    with pytest.raises(UserError, match=r"training\.json is not the progress of a training"):
        load_progress(folder)


def test_a_folder_that_is_no_checkpoint_does_not_hide_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jat-project" / "jat").mkdir(parents=True)
    message = r"the folder jat-project/jat here is no checkpoint.*hides the repository.*give hub:jat-project/jat"
    with pytest.raises(UserError, match=message):
        locate("jat-project/jat")
    (tmp_path / "jat-project" / "jat" / "config.json").touch()
    assert locate("jat-project/jat") == Path("jat-project/jat")
    assert locate(tmp_path / "jat-project") == tmp_path / "jat-project"
    (tmp_path / "file.safetensors").touch()
    with pytest.raises(UserError, match=r"file\.safetensors is a file; give the folder that it is in"):
        locate("file.safetensors")
    with pytest.raises(UserError, match="nowhere is neither a folder nor a repository owner/name"):
        locate("nowhere")


@pytest.mark.parametrize("value", ["/etc", "../../elsewhere", 7])
def test_a_training_s_manifest_names_no_checkpoint_elsewhere(value: Any, tmp_path: Path) -> None:
    numbers = {"digest": "", "steps": 1, "trained_timesteps": 1, "num_parameters": 1}
    shares = {"train_seconds": 1.0, "padding_share": 0.0}
    write_json(tmp_path / "train" / "manifest.json", {"checkpoint": value, **numbers, **shares})
    with pytest.raises(UserError, match=r"manifest\.json is not the manifest of a training .*run `jat train` again"):
        checkpoint_folder(tmp_path, None)
