import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = ["make", "-n", "--no-print-directory", *arguments]
    environ = {**os.environ, "MAKEFLAGS": ""}  # of the `make test` that runs this
    return subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True, env=environ)


def test_a_misspelt_variable_is_an_error_before_anything_runs() -> None:
    result = make("collect", "TASKS=metaworld-*")
    assert result.returncode == 2
    assert "no target takes TASKS (did you mean TASK?); `make help` lists the variables" in result.stderr
    assert result.stdout == "" and "WORKERS" not in result.stderr
    many = make("collect", "EPSIODES=3", "WORKER=2", "ZZZ=1").stderr
    assert all(
        f"{wrong} (did you mean {right}?)" in many for wrong, right in (("EPSIODES", "EPISODES"), ("WORKER", "WORKERS"))
    )
    assert "ZZZ (did" not in many and "ZZZ" in many


def test_options_of_one_command_are_not_given_to_several() -> None:
    result = make("train", "evaluate", "ARGS=--steps 5")
    assert result.returncode == 2 and result.stdout == ""
    assert "ARGS= is for one target, and these are 2" in result.stderr


@pytest.mark.parametrize("value", ["s3://KEY:s3cret/x@bucket/run", "s3://KEY:s3cret@bucket", "https://s3cret@host/x"])
@pytest.mark.parametrize("name", ["OUT", "TASK", "EXPERT", "ARGS"])
def test_credentials_in_an_address_are_refused_and_not_repeated(name: str, value: str) -> None:
    result = make("publish", f"{name}={value}")
    assert result.returncode == 2
    assert f"{name} carries credentials; leave them to the environment" in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


@pytest.mark.parametrize("options", ["--to '{}'", "--tag v1 --to={}", '--to "{}" --tag v1'])
def test_credentials_among_other_options_are_refused_and_not_repeated(options: str) -> None:
    result = make("publish", f"ARGS={options.format('s3://KEY:s3cret@bucket')}")
    assert result.returncode == 2
    assert "ARGS carries credentials" in result.stderr and "s3cret" not in result.stdout + result.stderr


def test_credentials_in_place_of_a_target_are_refused_and_not_repeated() -> None:
    result = make("s3://KEY:s3cret@bucket")
    assert result.returncode == 2
    assert "a target carries credentials" in result.stderr and "s3cret" not in result.stdout + result.stderr


def test_addresses_without_credentials_are_not_refused() -> None:
    for value in ("s3://bucket/run", "hf://datasets/owner/name@branch", "http://127.0.0.1:8080/files", "owner/name@v1"):
        assert make("publish", f"ARGS=--to {value}").returncode == 0


def test_a_value_reaches_the_command_as_it_is() -> None:
    result = make("collect", "TASK=metaworld-*,babyai-go to", "OUT=a b", "RAY_ADDRESS=host:6379")
    assert result.returncode == 0
    assert "--task 'metaworld-*,babyai-go to'" in result.stdout
    assert "--out 'a b'" in result.stdout


def test_options_reach_the_command_as_a_shell_reads_them() -> None:
    assert "collect --out 'runs/default' --noise 'epsilon=0.1' --allow-weak\n" in re.sub(
        " +", " ", make("collect", "ARGS=--noise 'epsilon=0.1' --allow-weak").stdout
    )


def test_a_number_of_episodes_is_about_collecting_if_anything_is_collected() -> None:
    lines = make("experts", "collect", "EPISODES=20").stdout.splitlines()
    (collect,) = [line for line in lines if "dags.cli collect" in line]
    assert "--episodes '20'" in collect and "".join(lines).count("--episodes") == 1
    assert "--episodes '20'" in make("experts", "EPISODES=20").stdout


def test_released_experts_are_of_all_tasks_unless_told_otherwise() -> None:
    assert "--task '*' --expert 'released'" in make("experts", "EXPERT=released").stdout
    assert "--task 'atari' --expert 'released'" in make("experts", "EXPERT=released", "TASK=atari").stdout
    assert "--task" not in make("experts", "EXPERT=best").stdout


def test_a_python_of_another_version_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\ntest "$1" = -V && echo Python 3.9.18\nexit 1\n')
    old.chmod(0o755)
    environ = {**os.environ, "MAKEFLAGS": ""}
    done = subprocess.run(
        ["make", "setup", f"PYTHON={old}"], check=False, cwd=tmp_path, capture_output=True, text=True, env=environ
    )
    assert done.returncode == 2
    assert f"error: '{old}' is Python 3.9.18, and Python 3.11 to 3.13 is needed: name one, as in" in done.stderr
    assert not (tmp_path / ".venv").exists()
    # The same versions that pip takes; types and style are checked for the oldest of them.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    assert project["tool"]["mypy"]["python_version"] == "3.11" and project["tool"]["ruff"]["target-version"] == "py311"


NAMING_TARGETS = [
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
    if re.search(r"(?:^|`)make [a-z]", path.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("document", NAMING_TARGETS, ids=str)
def test_documents_name_targets_and_variables_that_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(makefile.split("VARIABLES := ")[1].split("\n#")[0].replace("\\", "").split())
    commands = re.findall(
        r"(?:^|`)make ((?:[a-z-]+|[A-Z_]+=\S*)(?: (?:[a-z-]+(?=[ `\n])|[A-Z_]+=(?:'[^']*'|[^\s`']*)))*)",
        (ROOT / document).read_text(),
        re.MULTILINE,
    )
    assert commands
    for command in commands:
        for word in shlex.split(command):
            name, is_variable, _ = word.partition("=")
            assert name in (variables if is_variable else targets), command
