"""Completion knows every sub-command and every option that its parser takes, and no other."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from dags import cli, completion
from pipeline.cli import options_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), ROOT / "deploy" / "README.md"]
COMPLETE = """
source /dev/stdin
words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_jat; printf '%s\\n' "${COMPREPLY[@]}"; }
words "$@"
"""


@cache
def script(shell: str) -> str:
    command = [sys.executable, "-m", "dags.cli", "completion", shell]
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout


def in_bash(*words: str) -> list[str]:
    """What bash offers for the last of the words."""
    command = ["bash", "-c", COMPLETE, "bash", *words]
    done = subprocess.run(command, check=True, cwd=ROOT, input=script("bash"), capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("jat colle", {"collect"}),
        ("jat va", {"validate"}),
        ("jat dataset va", {"validate"}),
        ("jat agent p", {"play", "publish"}),
        ("jat collect --ep", {"--episodes"}),
        ("jat collect --no-", {"--no-allow-weak", "--no-reference-envs"}),
        ("jat collect --recipe ", {"default", "demo", "jat", "laptop"}),
        ("jat dataset --m", {"--mix"}),
        ("jat train --fro", {"--from"}),
        ("jat train --model.window", {"--model.window-steps", "--model.window-size"}),
        ("jat train --model.discrete-encoder ", {"flat", "cells"}),
        ("jat status --format ", {"text", "markdown", "json", "tsv"}),
        ("jat browse col", {"collectors"}),
        ("jat play --out col", {"collectors"}),
        ("jat completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes(line: str, offered: set[str]) -> None:
    assert set(in_bash(*line.split(" "))) == offered


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_every_shell_is_given_every_command_in_words_it_can_read(shell: str, check: str) -> None:
    text = script(shell)
    for command in cli.COMMANDS.values():
        assert re.search(rf"\b{command.name.split()[-1]}\b", text), command.name
    if shutil.which(shell):
        done = subprocess.run([shell, check], check=False, input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=lambda command: command.name)
def test_the_options_of_a_command_are_those_that_its_help_lists(
    command: cli.Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cli import parse

    options = options_of(command.module)
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit, match="0"):
        parse(options.config_type, {}, ["--help"], options.prints_tables)
    helps = capsys.readouterr().out
    listed = set(re.findall(r"--[a-z][\w.-]*", " ".join(re.findall(r"^[^\w-]*(-.*?)  ", helps, re.MULTILINE))))
    completed = set(completion.parser_of(command)._option_string_actions) - {"-h"}
    assert "--help" in listed and listed - completed == set()
    # The options of another network are listed only with a recipe that has it.
    others = {name for name in completed - listed if "model." not in name}
    assert others <= {"--recipe", "--format", "--domain"}


def test_a_command_whose_package_is_missing_is_completed_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trainer.play", None)
    parser = completion.parser_of(cli.COMMANDS["agent play"])
    assert set(parser._option_string_actions) == {"-h", "--help"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_options_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^|`|&& |bin/)jat ([a-z][^`#&|\n]*)", text, re.MULTILINE):
        try:
            command, rest = cli.find_command(shlex.split(line))
        except ValueError:  # an apostrophe of prose
            continue
        allowed = completion.parser_of(command)._option_string_actions
        for word in rest:
            assert not word.startswith("--") or word == "--" or word.partition("=")[0] in allowed, line
