from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any

import pytest

from pipeline.cli import by_name, parse, run
from pipeline.errors import JobsFailedError, UserError


@dataclass(frozen=True)
class Config:
    """Do the thing."""

    task: str = "all"
    """Which task."""
    timeout_s: float = 1.5
    """Seconds to wait."""
    shard_episodes: int = 10
    """Episodes per shard."""


def small() -> Config:
    return Config(timeout_s=0.5, shard_episodes=2)


RECIPES: dict[str, Callable[[], Config]] = {"small": small}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Config("all", 1.5, 10)),
        (["--task", "reach"], Config("reach", 1.5, 10)),
        (["--recipe", "small"], Config("all", 0.5, 2)),
        (["--recipe=small", "--shard-episodes", "7"], Config("all", 0.5, 7)),
        # The order of the words does not matter: a flag is above a recipe.
        (["--shard-episodes", "7", "--recipe", "small"], Config("all", 0.5, 7)),
        (["--recipe", "default"], Config("all", 1.5, 10)),
    ],
)
def test_a_flag_is_above_a_recipe_is_above_the_default(argv: list[str], expected: Config) -> None:
    assert parse(Config, RECIPES, argv=argv) == expected


def test_a_recipe_may_say_what_has_no_default() -> None:
    @dataclass(frozen=True)
    class Needy:
        """Needs a task."""

        task: str

    assert parse(Needy, {"demo": lambda: Needy("reach")}, argv=["--recipe", "demo"]) == Needy("reach")
    with pytest.raises(SystemExit) as left:
        parse(Needy, argv=[])
    assert left.value.code == 2


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(UserError, match="unknown recipe 'big'; allowed: default, small"):
        parse(Config, RECIPES, argv=["--recipe", "big"])


@pytest.mark.parametrize("argv", [["--tsak", "reach"], ["--timeout-s", "soon"], ["reach"]])
def test_an_unknown_or_malformed_flag_exits_with_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(Config, RECIPES, argv=argv)
    assert left.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_help_tells_the_fields_and_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(Config, RECIPES, argv=["--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("Do the thing.", "default, small", "--timeout-s", "Seconds to wait."):
        assert part in text


def command_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> str:
    def main() -> None:
        if error:
            raise error

    module: Any = ModuleType("a_command")
    module.main = main
    monkeypatch.setitem(sys.modules, "a_command", module)
    return "a_command"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such task"), 2, "error: no such task"),
        (JobsFailedError("2 of 3 jobs failed"), 1, "error: 2 of 3 jobs failed"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
    ],
)
def test_an_error_people_can_act_on_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run(command_that_raises(monkeypatch, error))
    assert left.value.code == code
    assert capsys.readouterr().err == line + "\n"


def test_a_package_that_is_missing_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ModuleNotFoundError("No module named 'mujoco.egl'", name="mujoco.egl")
    with pytest.raises(SystemExit) as left:
        run(command_that_raises(monkeypatch, missing))
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the package 'mujoco' is not installed for ") and said.count("\n") == 1
    with pytest.raises(ModuleNotFoundError):
        run(command_that_raises(monkeypatch, ModuleNotFoundError("No module", name="pipeline.gone")))


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run(command_that_raises(monkeypatch, ZeroDivisionError()))


def test_a_command_that_works_just_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    run(command_that_raises(monkeypatch, None))


def test_numbers_by_name_are_one_flag_that_replaces_those_of_the_recipe() -> None:
    @dataclass(frozen=True)
    class Weighted:
        """Has weights."""

        weights: Annotated[dict[str, float], by_name(float)] = field(default_factory=lambda: {"reach": 2.0})
        """Of tasks."""

    recipes = {"heavy": lambda: Weighted({"push": 9.0})}
    assert parse(Weighted, recipes, argv=[]).weights == {"reach": 2.0}
    assert parse(Weighted, recipes, argv=["--weights", "push", "3", "sweep", "0.5"]).weights == {
        "push": 3,
        "sweep": 0.5,
    }
    assert parse(Weighted, recipes, argv=["--recipe", "heavy", "--weights"]).weights == {}


@pytest.mark.parametrize("words", [["push"], ["push", "much"]])
def test_numbers_by_name_come_in_pairs_of_both(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Weighted:
        """Has weights."""

        weights: Annotated[dict[str, float], by_name(float)] = field(default_factory=dict)
        """Of tasks."""

    with pytest.raises(SystemExit) as left:
        parse(Weighted, argv=["--weights", *words])
    assert left.value.code == 2
    assert "Error parsing --weights" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "number"), [("1e6", 10**6), ("1_000", 1000), ("10k", 10_000), ("-1", -1)])
def test_an_option_that_is_a_whole_number_takes_how_people_write_it(words: str, number: int) -> None:
    assert parse(Config, argv=["--shard-episodes", words]).shard_episodes == number


def test_half_a_number_is_refused_with_what_would_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(Config, argv=["--shard-episodes", "0.5"])
    assert left.value.code == 2
    assert "--shard-episodes" in (said := capsys.readouterr().err) and "1e3" in said
