from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from experts.tensors import check_arrays, load_tensors
from pipeline.errors import UserError

BOMB_BYTES = 16 * 2**20


def zip_bomb(path: Path, name: str) -> Path:
    """A small zip whose member unpacks to a thousand times as much."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(BOMB_BYTES))
    return path


def test_a_zip_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zip_bomb(tmp_path / "bomb.pth", "archive/data/0")
    assert bomb.stat().st_size < BOMB_BYTES / 900
    monkeypatch.setattr("experts.tensors.MOST_BYTES", BOMB_BYTES - 1)
    for source in (bomb, bomb.read_bytes()):
        with pytest.raises(UserError, match=r"here holds 1 files that unpack to 16 MiB; at most .* 16 MiB are read"):
            load_tensors(source, "here")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**12),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, device="meta"),
        torch.zeros(3, 3).to_sparse(),
        "a text",
    ],
    ids=["one number a trillion times", "complex", "no content", "sparse", "text"],
)
def test_a_state_dict_has_plain_arrays_that_are_as_large_as_they_say(value: Any) -> None:
    file = io.BytesIO()
    torch.save({"weight": value}, file)
    with pytest.raises(UserError, match=r"here.*weight"):
        check_arrays(load_tensors(file.getvalue(), "here"), "here")


def test_names_of_arrays_are_texts() -> None:
    with pytest.raises(UserError, match="not a state dict of named tensors; it has '7'"):
        check_arrays({7: torch.zeros(1)}, "here")
    check_arrays({"weight": torch.zeros(2, 3).T}, "here")
