"""The numbers of the house are what stands in the tree, and a limit that is kept fails once it is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import house

CONFIG = '''
class PlayConfig:
    """Options."""

    seed: int = 0
    """Where to begin."""
    count: int = 1

    def check(self) -> None:
        local: int = 3


class Other:
    field: int = 0


class SavedConfig:
    """What a file holds.

    Attributes:
        field: is no option.
    """

    field: int = 0


class _Config:
    field: int = 0
'''


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(tmp_path, "README.md", "a\nb\n")
    write(tmp_path, "docs/short.md", "a\n")
    write(tmp_path, "docs/long.md", "a\n" * 151)
    for name in ("pipeline/__init__.py", "pipeline/a.py", "pipeline/b.py", "trainer/data/c.py", "tests/d.py"):
        write(tmp_path, name, "x = 1\n")
    write(tmp_path, "trainer/play.py", CONFIG)
    write(tmp_path, "experts/embedded/task/weights", "x" * 3000)
    return tmp_path


def test_every_number_is_that_of_the_tree(tree: Path) -> None:
    found = {size.what: (size.value, size.where) for size in house.sizes(tree)}
    config_lines = len(CONFIG.splitlines())
    assert found == {
        "source lines": (4 + config_lines, ""),
        "modules": (4, ""),
        "modules in the largest folder": (2, "pipeline"),
        "lines of the longest module": (config_lines, "trainer/play.py"),
        "options of all commands": (2, ""),
        "lines of README.md": (2, ""),
        "lines of the longest document": (151, "docs/long.md"),
        "kilobytes of embedded experts": (3, ""),
    }


def test_only_a_limit_that_is_kept_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [house.Size("doors", 9, 4, "hall"), house.Size("rooms", 3, 3, is_kept=True)]
    monkeypatch.setattr(house, "sizes", lambda: sizes)
    monkeypatch.setattr(house, "path_joins", list)
    assert house.main() == 0
    sizes.append(house.Size("roofs", 2, 1, is_kept=True))
    assert house.main() == 1
    doors, rooms, roofs = capsys.readouterr().out.splitlines()[2:]
    assert doors.split() == ["doors", "(hall)", "9", "at", "most", "4", "not", "yet"]
    assert rooms.split() == ["rooms", "3", "at", "most", "3"]
    assert roofs.split() == ["roofs", "2", "at", "most", "1", "too", "many"]


def test_only_one_module_joins_the_paths_of_a_run(tree: Path) -> None:
    assert house.path_joins() == []
    write(tree, "pipeline/run_layout.py", 'SHARDS = "shards"\n\ndef shards(out):\n    return out / SHARDS\n')
    assert house.path_joins(tree) == []
    line = 'lines = [config.out / name, root / "shards", half / 2, root / "lock", root / "other"]'
    write(tree, "trainer/a.py", line)
    assert house.path_joins(tree) == ["trainer/a.py:1: config.out / name", "trainer/a.py:1: root / 'shards'"]


def test_two_classes_of_one_name_are_found(tmp_path: Path) -> None:
    for module in ("experts/one.py", "trainer/two.py"):
        path = tmp_path / module
        path.parent.mkdir()
        path.write_text("class Budget:\n    pass\n\n\nclass _Own:\n    pass\n")
    assert house.shared_class_names(tmp_path) == {"Budget": ["experts/one.py", "trainer/two.py"]}
    assert not house.shared_class_names()
