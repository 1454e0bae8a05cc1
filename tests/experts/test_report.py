from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experts import plots
from experts.ranking import rank_experts
from experts.report import ExpertsReportConfig, report, summaries, table_rows
from experts.store import TrainingPoint
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.pages.page import TEMPLATES
from tests.fakes import FAKE_COUNT, FAKE_PIXELS, store_network, store_random, write_measurement

pytestmark = pytest.mark.usefixtures("nothing_embedded")
# Names that JAT has figures for: random 18.3802, expert 1858.7284; and -43.002, -5.6784.
HOPPER = replace(FAKE_COUNT, name="mujoco-hopper", domain="mujoco", success=None)
REACHER = replace(HOPPER, name="mujoco-reacher")
CURVE = [
    TrainingPoint(1_000_000, 60.0, 20.0),
    TrainingPoint(2_000_000, 150.0, 900.0),
    TrainingPoint(3_000_000, 180.0, 1900.0),
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_measurement(store_network(tmp_path, HOPPER, 0.5, "sac", CURVE), HOPPER, [1858.7284] * 4)
    write_measurement(store_random(tmp_path, HOPPER), HOPPER, [18.3802] * 4)
    write_measurement(store_network(tmp_path, REACHER, 0.5, "ppo"), REACHER, [-43.002] * 4)
    write_measurement(store_random(tmp_path, REACHER), REACHER, [-43.002] * 4)
    write_measurement(store_network(tmp_path, FAKE_COUNT, 0.1), FAKE_COUNT, [5, 7], [True, False])
    return tmp_path


def rows(out: Path, task: Any) -> list[tuple[str, ...]]:
    return list(table_rows(rank_experts(out, task)))


def test_a_row_says_how_good_an_expert_is_on_jat_s_scale(out: Path) -> None:
    expert, random = rows(out, HOPPER)
    assert expert[0] == "mujoco-hopper"
    assert re.fullmatch(r"sac-[0-9a-f]{8}", expert[1])
    assert expert[2:] == (
        "1858.73 [1858.73, 1858.73]", "-", "1", "1.00 [1.00, 1.00]", "1858.73", "4", "return", "made to act 0.5",
    )  # fmt: skip
    assert random[1:3] == ("random-1", "18.38 [18.38, 18.38]")
    assert (random[5], random[8]) == ("0.00 [0.00, 0.00]", "")


def test_an_expert_no_better_than_random_is_marked_so(out: Path) -> None:
    expert, random = rows(out, REACHER)
    assert (expert[8], random[8]) == ("not better than random", "")


def test_a_task_that_jat_does_not_know_has_no_scale_but_successes(out: Path) -> None:
    (expert,) = rows(out, FAKE_COUNT)
    assert expert[3:9] == ("0.50", "1", "-", "-", "2", "return, success")


def test_the_markdown_table_has_the_best_expert_of_each_task(out: Path) -> None:
    page = report(ExpertsReportConfig(out=out), [FAKE_COUNT, HOPPER])
    _, _, count, hopper = (page.parent / "table.md").read_text().splitlines()
    assert count.startswith(f"| {FAKE_COUNT.name} | `ppo-")
    assert re.match(r"\| mujoco-hopper \| `sac-[0-9a-f]{8}` ", hopper)
    assert hopper.endswith("| 1858.73 [1858.73, 1858.73] | 1.00 | 1858.73 | - | - | - |")


def test_the_page_shows_every_expert_and_needs_no_other_file(out: Path) -> None:
    page = report(ExpertsReportConfig(out=out), [FAKE_COUNT, HOPPER, REACHER, FAKE_PIXELS])
    assert page == out / "experts" / "report" / "index.html"
    text = page.read_text()
    assert text.count("<tr data-task=") == 5
    assert text.count('<svg role="img" aria-label="MuJoCo: every expert') == 1
    assert text.count('<svg role="img" aria-label="mujoco-hopper"') == 1
    assert set(re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', text)) == set()
    assert "default-src 'none'" in text
    for name in ("scores-mujoco", "curve-mujoco-hopper"):
        assert (page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_the_look_of_the_agent_s_report(out: Path) -> None:
    text = report(ExpertsReportConfig(out=out), [HOPPER]).read_text()
    for name in ("page.css", "page.js"):
        assert (TEMPLATES / name).read_text() in text


def test_the_page_says_what_is_weak_and_what_has_no_scale(out: Path) -> None:
    disassemble = replace(HOPPER, name="metaworld-disassemble", domain="metaworld")
    write_measurement(store_network(out, disassemble, 0.5, "sac"), disassemble, [444.0] * 4)
    text = report(ExpertsReportConfig(out=out), [REACHER, disassemble]).read_text()
    assert re.search(r"mujoco-reacher: ppo-[0-9a-f]{8} is not better than random", text)
    assert "hardly better than random there: metaworld-disassemble." in text
    assert "no scale" in text and "160" not in text


def test_names_from_files_cannot_become_markup(out: Path) -> None:
    expert = store_network(out, FAKE_COUNT, 0.2)
    write_measurement(expert, FAKE_COUNT, [5, 7], [True, False])
    record = expert.folder / "expert.json"
    raw = read_json(record)
    raw["origin"] = "<script>alert(1)</script>"
    write_json(record, raw)
    text = report(ExpertsReportConfig(out=out), [FAKE_COUNT]).read_text()
    assert "&lt;script&gt;alert(1)" in text and "<script>alert" not in text


def test_the_tiles_count_the_best_experts_that_jat_has_a_scale_for(out: Path) -> None:
    found = [rank_experts(out, task) for task in (FAKE_COUNT, HOPPER, REACHER)]
    fake, mujoco = summaries(found)
    assert (fake.num_tasks, fake.median, fake.num_compared) == (1, None, 0)
    assert (mujoco.num_tasks, mujoco.median, mujoco.num_as_good, mujoco.num_compared) == (2, 0.5, 1, 2)


def test_the_figures_show_the_curve_and_the_scores(out: Path) -> None:
    (plot,) = plots.draw_curves(out, [HOPPER, REACHER])
    steps, minutes = plot.figure.axes
    for axes, expected in ((steps, [1.0, 2.0, 3.0]), (minutes, [1.0, 2.5, 3.0])):
        curve, jat_expert, jat_random = axes.get_lines()
        assert curve.get_xdata() == pytest.approx(expected)
        assert curve.get_ydata() == pytest.approx([20.0, 900.0, 1900.0])
        assert level(jat_expert) == pytest.approx(1858.7284)
        assert level(jat_random) == pytest.approx(18.3802)
    (plot,) = plots.draw_bars([rank_experts(out, task) for task in (HOPPER, REACHER)])
    (bars,) = plot.figure.axes
    assert [patch.get_width() for patch in bars.patches] == pytest.approx([1.0, 0.0], abs=1e-9)
    assert [text.get_text() for text in bars.texts] == ["1.00", "0.00"]
    labels = [label.get_text().split()[0] for label in bars.get_yticklabels()]
    assert labels == ["mujoco-hopper", "mujoco-reacher"]


def test_a_domain_with_several_trained_tasks_has_all_curves_in_one_figure(out: Path) -> None:
    curve = [TrainingPoint(1_000_000, 60.0, -30.0), TrainingPoint(2_000_000, 120.0, -4.0)]
    store_network(out, REACHER, 0.9, curve=curve)
    (plot,) = plots.draw_overviews(out, [HOPPER, REACHER])
    shown = {axes.get_title(): axes for axes in plot.figure.axes if axes.get_visible()}
    assert set(shown) == {"hopper", "reacher"}
    reacher = shown["reacher"].get_lines()[0]
    assert reacher.get_xdata() == pytest.approx([1.0, 2.0])
    assert reacher.get_ydata() == pytest.approx([-30.0, -4.0])


def test_a_score_far_beyond_leaves_room_for_the_others(out: Path) -> None:
    write_measurement(store_network(out, HOPPER, 0.7, "sac"), HOPPER, [100_000.0] * 4)
    write_measurement(store_network(out, HOPPER, 0.8, "sac"), HOPPER, [-100_000.0] * 4)
    (plot,) = plots.draw_bars([rank_experts(out, HOPPER)])
    (bars,) = plot.figure.axes
    assert bars.get_xlim() == (-1.0, 3.0)
    assert [text.get_text() for text in bars.texts] == ["54.33", "1.00", "-54.35"]


def level(line: Any) -> float:
    values: Sequence[float] = line.get_ydata()
    assert len(set(np.asarray(values).tolist())) == 1
    return float(values[0])


def test_nothing_measured_is_an_error_with_the_fix(tmp_path: Path) -> None:
    store_network(tmp_path, FAKE_COUNT)
    with pytest.raises(UserError, match=r"no expert of \* is measured in .*run `jat experts --task '\*'`"):
        report(ExpertsReportConfig(out=tmp_path), [FAKE_COUNT])
