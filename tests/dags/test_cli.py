"""The ``jat`` command: what each sub-command is, and what is said of one that is none."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dags import cli

ROOT = Path(__file__).parents[2]


def jat(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "dags.cli", *words]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)


def test_the_package_installs_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"jat": "dags.cli:main"}


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['jat', '--help']; from dags.cli import main; main();"
        "heavy = {'numpy', 'pyarrow', 'ray', 'rich', 'torch', 'tyro'} & set(sys.modules); assert not heavy, heavy;"
        "import time; assert time.process_time() < 0.5"  # 0.1 s; a machine that is busy takes no more of it
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in cli.COMMANDS.values():
        assert f"  {command.name} " in result.stdout


@pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=lambda command: command.name)
def test_every_command_names_a_module_with_a_main(command: cli.Command) -> None:
    found = importlib.util.find_spec(command.module)
    assert found is not None and found.origin is not None
    assert "\ndef main() -> None:\n" in Path(found.origin).read_text()


@pytest.mark.parametrize(
    ("words", "name", "rest"),
    [
        (["collect", "--task", "mujoco"], "collect", ["--task", "mujoco"]),
        (["dataset"], "dataset", []),
        (["dataset", "--mix"], "dataset", ["--mix"]),
        (["dataset", "validate", "--task", "atari"], "dataset validate", ["--task", "atari"]),
        (["validate"], "dataset validate", []),
        (["compare", "--name", "early"], "agent compare", ["--name", "early"]),
        (["publish"], "publish", []),
        (["agent", "publish"], "agent publish", []),
    ],
)
def test_a_command_is_found_with_and_without_its_group(words: list[str], name: str, rest: list[str]) -> None:
    command, left = cli.find_command(words)
    assert (command.name, left) == (name, rest)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["collet", "--task", "x"], "error: there is no command `jat collet`; did you mean `jat collect`?\n"),
        (["valdate"], "error: there is no command `jat valdate`; did you mean `jat dataset validate`?\n"),
        (["dataset", "reply"], "error: there is no command `jat dataset reply`; did you mean `jat dataset replay`?\n"),
        (["xyzzy"], "error: there is no command `jat xyzzy`; `jat --help` lists the commands\n"),
        (["--tsak"], "error: there is no command `jat --tsak`; `jat --help` lists the commands\n"),
    ],
)
def test_an_unknown_command_is_told_the_nearest(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.find_command(words)
    assert left.value.code == 2
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["collect", "--help"], "usage: jat collect [-h]"),
        (["replay", "--help"], "usage: jat dataset replay [-h]"),
        (["demo", "--help"], "usage: jat demo [-h]"),
        (["agent", "--help"], "agent play"),
    ],
)
def test_help_of_a_command_is_called_as_it_is_run(words: list[str], usage: str) -> None:
    result = jat(*words)
    assert result.returncode == 0
    assert usage in result.stdout


def test_a_group_alone_and_no_command_print_help_and_fail() -> None:
    for words in ([], ["agent"]):
        result = jat(*words)
        assert result.returncode == 2
        assert "agent compare" in result.stderr


def test_a_wrong_option_names_the_help_that_can_be_run() -> None:
    result = jat("status", "--tsak")
    assert result.returncode == 2
    assert "jat status --help" in result.stderr
    module = [sys.executable, "-m", "collectors.status", "--tsak"]
    said = subprocess.run(module, check=False, cwd=ROOT, capture_output=True, text=True).stderr
    assert "python -m collectors.status --help" in said


@pytest.mark.parametrize(
    "words",
    [
        ["s3://KEY:hunter22@bucket/run"],
        ["dataset", "s3://KEY:hunter22@bucket/run"],
        ["--out=s3://KEY:hunter22@bucket/run"],
        ["hf_hunter22hunter22hunter22"],
    ],
)
def test_a_secret_in_place_of_a_command_is_not_repeated(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.find_command(words)
    told = capsys.readouterr().err
    assert "hunter22" not in told and "[hidden]" in told


def test_the_demo_is_the_chain_with_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from dags import chain

    seen: list[chain.ChainConfig] = []
    monkeypatch.setattr(chain, "run_chain", seen.append)
    monkeypatch.setattr(sys, "argv", ["jat", "demo", "--workers", "1"])
    cli.main()
    assert seen == [chain.ChainConfig(out=Path("runs/demo"), recipe="demo", workers=1)]


def strings_of(path: Path) -> list[str]:
    """The string constants of a module, without its docstrings; of an f-string the parts that are constant."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and node.body
                  and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("folder", ["pipeline", "experts", "collectors", "trainer", "dags"])
def test_messages_name_commands_that_whoever_installed_a_wheel_has(folder: str) -> None:
    """`make` is only in a clone: no message names one of its targets but those that set it up, beside `pip install`."""
    make = re.compile(r"`make (?!setup)[a-z]|\b(OUT|TASK|EXPERT|NAME|EPISODES|CHECKPOINT)=")
    commands = re.compile(r"`jat ([a-z][a-z-]*(?: [a-z][a-z-]*)?)")
    found = 0
    for path in (ROOT / folder).rglob("*.py"):
        for text in strings_of(path):
            assert not make.search(text), (path, text)
            for words in commands.findall(text):
                found += 1
                name = words if words in cli.COMMANDS else words.split()[0]
                assert name in cli.COMMANDS or name in cli.GROUPS, (path, text)
    assert found
