from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experts.ranking import standings
from experts.report import ReportConfig, report, table_rows
from experts.store import CurvePoint
from pipeline.errors import UserError
from tests.fakes import FAKE_COUNT, FAKE_PIXELS, store_network, store_random, write_measurement

pytestmark = pytest.mark.usefixtures("nothing_embedded")
# Names that JAT has figures for: random 18.3802, expert 1858.7284; and -43.002, -5.6784.
HOPPER = replace(FAKE_COUNT, name="mujoco-hopper", domain="mujoco", success=None)
REACHER = replace(HOPPER, name="mujoco-reacher")
CURVE = [CurvePoint(1_000_000, 60.0, 20.0), CurvePoint(2_000_000, 150.0, 900.0), CurvePoint(3_000_000, 180.0, 1900.0)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_measurement(store_network(tmp_path, HOPPER, 0.5, "sac", CURVE), HOPPER, [1858.7284] * 4)
    write_measurement(store_random(tmp_path, HOPPER), HOPPER, [18.3802] * 4)
    write_measurement(store_network(tmp_path, REACHER, 0.5, "ppo"), REACHER, [-43.002] * 4)
    write_measurement(store_random(tmp_path, REACHER), REACHER, [-43.002] * 4)
    write_measurement(store_network(tmp_path, FAKE_COUNT, 0.1), FAKE_COUNT, [5, 7], [True, False])
    return tmp_path


def rows(out: Path, task: Any) -> list[tuple[str, ...]]:
    return list(table_rows(standings(out, task)))


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
    page = report(ReportConfig(out=out), [FAKE_COUNT, HOPPER])
    _, _, count, hopper = (page.parent / "table.md").read_text().splitlines()
    assert count.startswith(f"| {FAKE_COUNT.name} | `ppo-")
    assert re.match(r"\| mujoco-hopper \| `sac-[0-9a-f]{8}` ", hopper)
    assert hopper.endswith("| 1858.73 [1858.73, 1858.73] | 1.00 | 1858.73 | - | - | - |")


def test_the_page_shows_every_expert_and_every_picture_is_there(out: Path) -> None:
    page = report(ReportConfig(out=out), [FAKE_COUNT, HOPPER, REACHER, FAKE_PIXELS])
    assert page == out / "experts" / "report" / "index.html"
    text = page.read_text()
    assert text.count("<tr><td>") == 5
    pictures = re.findall(r'<img src="([^"]+)"', text)
    assert pictures == ["scores-mujoco.png", "curve-mujoco-hopper.png"]
    for name in pictures:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")
    assert "http" not in text


def test_the_pictures_show_the_curve_and_the_scores(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}

    def note(figure: Any, path: Path) -> str:
        drawn[path.name] = figure
        return path.name

    monkeypatch.setattr("experts.plots._save", note)
    report(ReportConfig(out=out), [HOPPER, REACHER])
    steps, minutes = drawn["curve-mujoco-hopper.png"].axes
    for axes, expected in ((steps, [1.0, 2.0, 3.0]), (minutes, [1.0, 2.5, 3.0])):
        curve, jat_expert, jat_random = axes.get_lines()
        assert curve.get_xdata() == pytest.approx(expected)
        assert curve.get_ydata() == pytest.approx([20.0, 900.0, 1900.0])
        assert level(jat_expert) == pytest.approx(1858.7284)
        assert level(jat_random) == pytest.approx(18.3802)
    (bars,) = drawn["scores-mujoco.png"].axes
    assert [patch.get_width() for patch in bars.patches] == pytest.approx([1.0, 0.0], abs=1e-9)
    assert [text.get_text() for text in bars.texts] == ["1.00", "0.00"]
    labels = [label.get_text().split()[0] for label in bars.get_yticklabels()]
    assert labels == ["mujoco-hopper", "mujoco-reacher"]


def test_a_domain_with_several_trained_tasks_has_all_curves_in_one_picture(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr("experts.plots._save", lambda figure, path: drawn.update({path.name: figure}) or path.name)
    curve = [CurvePoint(1_000_000, 60.0, -30.0), CurvePoint(2_000_000, 120.0, -4.0)]
    store_network(out, REACHER, 0.9, curve=curve)
    report(ReportConfig(out=out), [HOPPER, REACHER])
    shown = {axes.get_title(): axes for axes in drawn["curves-mujoco.png"].axes if axes.get_visible()}
    assert set(shown) == {"hopper", "reacher"}
    reacher = shown["reacher"].get_lines()[0]
    assert reacher.get_xdata() == pytest.approx([1.0, 2.0])
    assert reacher.get_ydata() == pytest.approx([-30.0, -4.0])


def test_a_score_far_beyond_leaves_room_for_the_others(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("experts.plots._save", lambda figure, path: drawn.append(figure) or path.name)
    write_measurement(store_network(out, HOPPER, 0.7, "sac"), HOPPER, [100_000.0] * 4)
    write_measurement(store_network(out, HOPPER, 0.8, "sac"), HOPPER, [-100_000.0] * 4)
    report(ReportConfig(out=out), [HOPPER])
    (bars,) = drawn[0].axes
    assert bars.get_xlim() == (-1.0, 3.0)
    assert [text.get_text() for text in bars.texts] == ["54.33", "1.00", "-54.35"]


def level(line: Any) -> float:
    values: Sequence[float] = line.get_ydata()
    assert len(set(np.asarray(values).tolist())) == 1
    return float(values[0])


def test_nothing_measured_is_an_error_with_the_fix(tmp_path: Path) -> None:
    store_network(tmp_path, FAKE_COUNT)
    with pytest.raises(UserError, match=r"no expert of \* is measured in .*run `make experts TASK=\*`"):
        report(ReportConfig(out=tmp_path), [FAKE_COUNT])
