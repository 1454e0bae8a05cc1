"""Figures that the documents quote are those of the files they are of; a figure stands in one place."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest

from experts.ranking import best_by_return, best_of, rank_experts
from experts.report import markdown_table
from pipeline.cli import parse
from pipeline.envs.registry import select_tasks
from pipeline.scoring.measurement import Measurement, best_measurement, packaged_measurements
from pipeline.scoring.scores import jat_scale, jat_scores
from trainer.config import RECIPES, TrainConfig
from trainer.reporting.commands import flat

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]
EMBEDDED = ROOT / "experts" / "embedded"
TITLES = {"BabyAI": "babyai", "Meta-World": "metaworld", "MuJoCo": "mujoco", "all": ""}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def table_after(text: str, heading: str) -> list[list[str]]:
    """Cells of the rows of the table whose first line begins with ``heading``, without marks."""
    lines = text[text.index(heading) :].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[re.sub(r"[*`]", "", cell).strip() for cell in row.strip("|").split("|")] for row in rows]


def measured(task: str, kind: str) -> Measurement:
    (path,) = EMBEDDED.glob(f"{task}/{kind}-*/measurement.json")
    return Measurement(**json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("name", "tasks"), [("docs/expert-results.md", "metaworld,mujoco"), ("docs/atari-experts.md", "atari")]
)
def test_the_table_of_experts_is_that_of_the_embedded_measurements(tmp_path: Path, name: str, tasks: str) -> None:
    table = markdown_table([rank_experts(tmp_path, task) for task in select_tasks(tasks)])
    said = text_of(name).split("<!-- table -->\n")[1].split("<!-- end of table -->")[0]
    assert said == table, f"{name}: take the lines of OUT/experts/report/table.md, by `jat experts-report`"


def test_what_is_said_of_meta_world_in_sum_is_what_the_table_gives(tmp_path: Path) -> None:
    found = [rank_experts(tmp_path, task) for task in select_tasks("metaworld")]
    text = " ".join(text_of("docs/expert-results.md").split())
    for choose, mean_words, rate_words in (
        (best_of, "clipped at 1.2, is {}; {} of them reach 0.95", "The mean success rate over all 50 is {}"),
        (best_by_return, "With them the clipped mean is {}", "and the success rate {}"),
    ):
        best = [expert for ranked in found if (expert := choose(ranked))]
        scores = np.array([min(expert.on_jat_scale.mean, 1.2) for expert in best if expert.on_jat_scale])
        rates = [expert.measurement.success_rate for expert in best if expert.measurement.success_rate is not None]
        assert (len(scores), len(rates)) == (49, 50)
        assert mean_words.format(f"{scores.mean():.2f}", (scores >= 0.95).sum()) in text
        assert rate_words.format(f"{np.mean(rates):.2f}") in text


def test_the_demo_s_references_are_the_embedded_measurements() -> None:
    rows = table_after(text_of("README.md"), "| task | random | expert |")
    tasks = [row for row in rows if not row[0].startswith("mean")]
    assert len(tasks) == 6
    for task, random, expert, *_ in tasks:
        found = packaged_measurements(select_tasks(task)[0])
        best = best_measurement([measurement for measurement in found.values() if measurement.policy != "random"])
        assert random == f"{measured(task, 'random').mean_return.mean:.2f}"
        assert expert == f"{best.mean_return.mean:.2f}"


def test_the_table_of_100_tasks_is_that_of_its_report() -> None:
    page = html.unescape(re.sub(r"<[^>]+>", " ", text_of("docs/example-report/index.html")))
    names = re.findall(r'<tr data-task="([\w-]+)"', text_of("docs/example-report/index.html"))
    assert len(names) == 100
    rows = table_after(text_of("README.md"), "| domain | tasks | mean [95 % interval]")
    for title, tasks, mean, median, iqm, success, jat_mean, jat_median in rows:
        of_report = re.search(
            rf"{title if title != 'all' else 'All tasks'} {tasks} 0 ([^A-Z]+)", " ".join(page.split())
        )
        assert of_report is not None
        numbers = re.findall(r"([\d.]+|-) (?:\[[^]]+\])?", of_report[1])
        # Mean, median, IQM, optimality gap, success.
        assert [numbers[0], numbers[1], numbers[2], numbers[4].replace("-", "")] == [
            mean.split()[0],
            median,
            iqm,
            success,
        ]
        of_domain = [name for name in names if name.startswith(TITLES[title]) and jat_scale(name)]
        scores = [score_of_jat(name) for name in of_domain]
        assert (jat_mean, jat_median) == (f"{np.mean(scores):.2f}", f"{np.median(scores):.2f}")


def score_of_jat(name: str) -> float:
    scale = jat_scale(name)
    assert scale is not None
    return (jat_scores()[name]["jat"] - scale[0]) / (scale[1] - scale[0])


def test_the_command_of_the_100_tasks_gives_the_settings_of_their_report() -> None:
    (line,) = re.findall(r"\.venv/bin/jat train (.*--out runs/all.*)\n", text_of("docs/results.md"))
    settings = flat(dataclasses.asdict(parse(TrainConfig, RECIPES, shlex.split(line))))
    page = text_of("docs/example-report/index.html")
    section = page[page.index("All settings of <code>train</code>") :]
    said = re.findall(r'class="key">(.*?)</th><td class="value">(.*?)</td>', section[: section.index("</details>")])
    free = {"checkpoint_every", "keep_checkpoints", "dataset", "out", "task"}
    compared = {name: html.unescape(value) for name, value in said if name in settings and name not in free}
    assert len(compared) > 30
    assert {name: str(settings[name]) for name in compared} == compared


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_table_of_figures_stands_in_one_document(document: Path) -> None:
    others = "".join(other.read_text() for other in DOCUMENTS if other != document)
    rows = [
        line for line in document.read_text().splitlines() if line.startswith("|") and re.search(r"\d.*\d.*\d", line)
    ]
    assert [row for row in rows if row in others] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    named, file = 0, ""
    for path, test in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", text_of("docs/security.md")):
        file = path or file  # a second test of the same file is written without it
        assert f"\ndef {test}(" in text_of(file), f"{file}::{test}"
        named += 1
    assert named > 30


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_file_that_a_guide_names_is_there(document: str) -> None:
    folders = "pipeline|experts|collectors|trainer|dags|tests|docs"
    named = re.findall(rf"`((?:{folders})/[\w/.]*)`", text_of(document))
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_picture_of_the_architecture_names_files_that_are_there() -> None:
    names = re.findall(r">([\w/]+\.py)<", text_of("docs/architecture.svg"))
    folders = ("pipeline", "experts", "collectors", "trainer")
    there = [str(path) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(names) > 20
    assert [name for name in names if not any(path.endswith(f"/{name}") for path in there)] == []


def test_the_changelog_begins_with_this_version() -> None:
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert re.findall(r"^## (\S+)", text_of("CHANGELOG.md"), re.MULTILINE)[0] == version
