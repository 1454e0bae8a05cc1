"""The image's file, as far as it can be checked without building it: by a linter, and against what it names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Dockerfile"
TEXT = FILE.read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    hadolint = Path(sys.executable).with_name("hadolint")
    return subprocess.run([hadolint, path], capture_output=True, text=True, check=False, timeout=60)


def test_the_linter_has_nothing_to_say(tmp_path: Path) -> None:
    done = lint(FILE)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(TEXT.replace("USER 1000", "USER root"))
    assert "DL3002" in lint(wrong).stdout


def test_what_is_copied_is_there_and_is_not_left_out_of_the_context() -> None:
    sources = [word for line in re.findall(r"^COPY (.+) \S+$", TEXT, re.M) for word in line.split()]
    assert {"pyproject.toml", "constraints.txt"} < set(sources)
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert set(sources) == {line[1:] for line in ignored if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source


def test_every_package_is_copied() -> None:
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(re.findall(r"^COPY (\w+) ", TEXT, re.M))
    assert (ROOT / PROJECT["project"]["readme"]).name in TEXT


def test_its_extras_are_the_project_s_and_its_pins_the_makefile_s() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", TEXT, re.M)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    pin = re.findall(r"sample-factory==\S+", TEXT)
    assert pin == re.findall(r"sample-factory==\S+", (ROOT / "Makefile").read_text())
    (base,) = re.findall(r"^ARG BASE=(\S+)$", TEXT, re.M)
    assert base.startswith("python:3.11-") and PROJECT["project"]["requires-python"].startswith(">=3.11,")


def test_it_does_not_run_as_root() -> None:
    assert re.findall(r"^USER (.+)$", TEXT, re.M)[-1] == "1000"


def test_no_library_is_needed_that_the_base_has_not() -> None:
    """Wheels bring their own, so that nothing comes from apt; looked at in those of frames, films and simulators."""
    if shutil.which("ldd") is None:
        pytest.skip("no ldd")
    site = Path(sysconfig.get_path("purelib"))
    of_the_base = r"(linux-vdso|ld-linux-x86-64|libc|libm|libmvec|libdl|librt|libpthread|libgcc_s|libstdc\+\+|libz)\.so"
    for package in ("mujoco", "cv2", "av", "ale_py", "PIL", "pyarrow", "ray", "tokenizers", "minigrid", "h5py"):
        files = [path for path in (site / package).rglob("*.so*") if "/plugin/" not in str(path)]
        for path in files:
            text = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
            for line in filter(None, map(str.strip, text.splitlines())):
                name, _, place = line.partition(" => ")
                inside = place.startswith(str(site.resolve())) or place.startswith(str(site))
                assert inside or "statically" in name or re.match(of_the_base, Path(name.split()[0]).name), (path, line)
