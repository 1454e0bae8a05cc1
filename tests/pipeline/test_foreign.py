from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.foreign import MAX_MEMBERS, check_file, check_zip


def test_a_link_out_of_its_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "folder"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "file").write_text("x")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "within").symlink_to(folder / "blobs" / "file")
    check_file(folder / "within", 10, folder)
    with pytest.raises(UserError, match=r"out is a link that leads out of .*; put the file itself there"):
        check_file(folder / "out", 10, folder)
    (tmp_path / "alias").symlink_to(folder)  # the folder itself may be one
    check_file(tmp_path / "alias" / "within", 10, tmp_path / "alias")


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is no plain file"):
        check_file(tmp_path / "pipe", 10)
    check_file(tmp_path / "none", 10)  # for who opens it


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(11))
    check_file(tmp_path / "file", 11)
    with pytest.raises(UserError, match="file has 0 MiB, at most 0 MiB are read"):
        check_file(tmp_path / "file", 10)


def test_a_zip_of_too_many_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(MAX_MEMBERS + 1):
            archive.writestr(str(number), b"")
    with pytest.raises(UserError, match="many holds 10,001 files"):
        check_zip(tmp_path / "many.zip", "many", 10)
