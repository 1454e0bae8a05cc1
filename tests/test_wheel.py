"""What `pip install .` gives: a wheel with every file that the packages read, which works away from the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "experts", "collectors", "trainer", "dags")


@dataclass(frozen=True)
class Installed:
    """A wheel, and an environment that has it and the dependencies of this one, but not the sources."""

    wheel: Path
    environment: Path
    folder: Path

    def jat(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [self.environment / "bin" / "jat", *words]
        return subprocess.run(
            command, check=False, cwd=self.folder, env=without_sources(), capture_output=True, text=True, timeout=200
        )


def without_sources() -> dict[str, str]:
    """The environment variables without PYTHONPATH, which names the sources."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def pip(*words: str | Path) -> None:
    # Nothing is downloaded: what the wheel is built with is here, and its dependencies are not installed again. Where
    # the sources are found, pip takes their metadata for an installed package and installs nothing.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True, env=without_sources(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"  # a copy, because a build leaves folders beside what it builds
    for package in PACKAGES:
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, sources)
    (wheel,) = folder.glob("jat_pipeline-*.whl")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    pip("--python", environment / "bin" / "python", "install", "--no-deps", "--no-index", "--no-compile", wheel)
    (site,) = environment.glob("lib/python*/site-packages")
    # Named in a .pth file, the packages of this environment are found, but not the sources, which it has editable.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    shutil.rmtree(sources)
    return Installed(wheel, environment, folder)


def test_the_wheel_has_every_file_of_the_packages(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    assert packed == {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert {f"{package}/py.typed" for package in PACKAGES} < packed


def test_tasks_are_listed_where_only_the_wheel_is_installed(installed: Installed) -> None:
    done = installed.jat("tasks", "--format", "tsv")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 157


def test_two_episodes_are_collected_where_only_the_wheel_is_installed(installed: Installed) -> None:
    words = ("collect", "--task", "metaworld-reach", "--expert", "scripted", "--episodes", "2", "--workers", "1")
    done = installed.jat(*words, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert list(installed.folder.glob("run/shards/metaworld-reach/train-*.parquet"))
