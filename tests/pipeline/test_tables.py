"""Tables for people and for programs: nothing is cut, and numbers stay numbers."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli import parse
from pipeline.envs.registry import TasksConfig, all_tasks, tasks_table
from pipeline.errors import UserError
from pipeline.tables import Column, Table, choose_format, print_note, print_table, print_tables

ROOT = Path(__file__).parents[2]


def table() -> Table:
    columns = (Column("mean return [95 %]", ".2f", "mean_return"), Column("success", ".2f", missing="-"))
    found = Table("task", *columns, "episodes", Column("MB", ",.1f"), title="Experts", caption="2 tasks")
    found.add_row("a\tb [x]", (1.0, 0.5, float("nan")), 0.25, 1100, 12_345.678)
    found.add_row("c", None, None, 1, -0.001)
    found.add_section()
    found.add_row("all", None, None, 1101, 12_345.677, is_total=True)
    return found


def test_people_see_formatted_numbers_and_totals() -> None:
    assert table().texts() == [
        ("a\tb [x]", "1.00 [0.50, nan]", "0.25", "1,100", "12,345.7"),
        ("c", "", "-", "1", "0.0"),
        ("all", "", "-", "1,101", "12,345.7"),
    ]


def test_programs_get_numbers_without_totals_and_intervals_as_three_values(capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("json")
    print_table(table())
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "task": "a\tb [x]", "mean_return": 1.0, "mean_return_low": 0.5, "mean_return_high": None, "success": 0.25,
        "episodes": 1100, "mb": 12_345.678,
    }  # fmt: skip
    assert second["mean_return_low"] is None and second["success"] is None
    choose_format("tsv")
    print_table(table())
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split("\t") == list(first)
    rows = list(csv.DictReader(io.StringIO(printed), delimiter="\t"))
    assert [row["task"] for row in rows] == ["a b [x]", "c"]
    assert (rows[0]["episodes"], rows[0]["mb"], rows[1]["success"]) == ("1100", "12345.678", "")


def test_documents_get_the_text_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    choose_format("markdown")
    print_table(table())
    assert capsys.readouterr().out.splitlines() == [
        "| task | mean return [95 %] | success | episodes | MB |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a b [x] | 1.00 [0.50, nan] | 0.25 | 1,100 | 12,345.7 |",
        "| c |  | - | 1 | 0.0 |",
        "| **all** |  | **-** | **1,101** | **12,345.7** |",
    ]


def test_several_tables_of_a_command_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    empty = Table("problem", "count")
    choose_format("json")
    print_tables({"domains": table(), "problems": empty})
    print_note("report: somewhere")
    captured = capsys.readouterr()
    assert list(json.loads(captured.out)) == ["domains", "problems"] and json.loads(captured.out)["problems"] == []
    assert captured.err == "report: somewhere\n"
    choose_format("tsv")
    print_tables({"domains": table(), "problems": empty})
    parts = capsys.readouterr().out.split("\n\n")
    assert parts[0].startswith("# domains\ntask\t") and parts[1] == "# problems\nproblem\tcount\n"


def test_a_narrow_terminal_folds_cells_and_cuts_none() -> None:
    name = "metaworld-button-press-topdown-wall"
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    long = Table("task", "environment", "observation")
    long.add_row(name, "button-press-topdown-wall-v3", "continuous 39")
    console.print(long)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "\u2026" not in "".join(lines)
    cells = ["".join(line.split("\u2502")[1].strip() for line in lines if line.startswith("\u2502"))]
    assert cells == [name]


def test_names_in_brackets_are_no_markup() -> None:
    found = Table("task")
    found.add_row("metaworld-[ab]*[/red]")
    console = Console(file=io.StringIO(), width=80)
    console.print(found)
    assert "metaworld-[ab]*[/red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_piped_is_never_cut() -> None:
    command = [sys.executable, "-m", "dags.cli", "tasks"]
    printed = subprocess.run(
        command, check=True, cwd=ROOT, capture_output=True, text=True, env={"COLUMNS": "60"}
    ).stdout
    rows = [line for line in printed.splitlines() if line.startswith("\u2502")]
    assert [line.split("\u2502")[1].strip() for line in rows] == [task.name for task in all_tasks()]
    assert "\u2026" not in printed


def test_the_task_table_is_a_list_for_programs() -> None:
    command = [sys.executable, "-m", "dags.cli", "tasks", "--task", "mujoco-ant,babyai-open", "--format", "json"]
    found = json.loads(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout)
    assert [row["task"] for row in found] == ["babyai-open", "mujoco-ant"]
    assert found[1]["max_steps"] == 1000 and found[1]["success"] is None
    assert list(found[0]) == [column.name for column in tasks_table([]).columns]


def test_an_unknown_format_is_told_the_nearest_and_commands_without_tables_take_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match="--format is 'jsn'; allowed: text, markdown, json, tsv; did you mean json"):
        parse(TasksConfig, argv=["--format", "jsn"], prints_tables=True)
    with pytest.raises(SystemExit) as left:
        parse(TasksConfig, argv=["--format", "json"])
    assert left.value.code == 2
    capsys.readouterr()
    assert parse(TasksConfig, argv=["--format=tsv", "--task", "x"], prints_tables=True) == TasksConfig("x")


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells in a table of 2 columns"):
        Table("a", "b").add_row("x")
