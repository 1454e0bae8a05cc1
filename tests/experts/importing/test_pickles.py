from __future__ import annotations

import pickle
import resource
from pathlib import Path

import pytest

from experts.importing.pickles import MOST_OPCODES, read_pickle
from pipeline.errors import UserError

HUGE = (2**32 - 1).to_bytes(4, "little")
# Few bytes that ask for gigabytes.
GREEDY = {
    "memo": b"\x80\x04Nr" + HUGE + b".",
    "bytes": b"\x80\x04B" + HUGE + b".",
    "long bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
    "byte array": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
    "text": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b".",
    "frame": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",
    "many empty dicts": b"\x80\x04" + b"}0" * MOST_OPCODES + b"N.",
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_pickle_gets_no_memory_that_it_has_no_content_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / "greedy.pkl"
    path.write_bytes(GREEDY[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"greedy\.pkl is not a whole pickle .*; expected a pickle, copy it again"):
        read_pickle(path, "a pickle")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.pkl").open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(UserError, match=r"large\.pkl has 4,096 MiB, at most 32 MiB are read"):
        read_pickle(tmp_path / "large.pkl", "a pickle")


def test_plain_values_come_as_they_are(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, "three", None, (True, b"x")]}
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(value))
    assert read_pickle(tmp_path / "plain.pkl", "a pickle") == value
