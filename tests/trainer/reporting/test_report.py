from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.media.video import read_mp4, write_mp4
from pipeline.run_layout import RunLayout
from pipeline.runtime.hardware import this_machine
from pipeline.seeds import seeds_of
from tests.trainer.report_run import EXPERT, SETTINGS, write_run
from trainer.evaluation.results import load_evaluation
from trainer.reporting.facts import gather
from trainer.reporting.histograms import returns_histogram
from trainer.reporting.report import AgentReportConfig, _duration, print_scores, report
from trainer.reporting.videos import find_pairs, make_grids, make_videos

TASKS = "atari-bowling,atari-pong,babyai-go-to-obj,metaworld-reach,mujoco-pusher"
(SEED,) = seeds_of("evaluate", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up run of five tasks and its report. Tests change copies of it."""
    out = tmp_path_factory.mktemp("report")
    write_run(out, "atari-pong,metaworld-reach", TASKS)
    report(AgentReportConfig(out=out))
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def page_of(out: Path) -> str:
    return (out / "report" / "index.html").read_text()


def test_the_page_has_every_task_and_needs_no_network(made: Path) -> None:
    page = page_of(made)
    for task in TASKS.split(","):
        assert f'<tr data-task="{task}"' in page
    # SVG names its namespaces by addresses that nobody loads.
    assert set(re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', page)) == set()
    for outside in ("@import", "url(http", "<iframe", '<link rel="stylesheet'):
        assert outside not in page
    assert "default-src 'none'" in page


def test_all_tasks_together_are_shown_only_beside_several_domains(made: Path, tmp_path: Path) -> None:
    assert "All tasks" in page_of(made)
    write_run(tmp_path, "metaworld-reach", "metaworld-reach,metaworld-push")
    report(AgentReportConfig(out=tmp_path))
    assert "All tasks" not in page_of(tmp_path)


def test_a_task_that_is_not_scorable_is_named_and_is_in_no_aggregate(made: Path) -> None:
    facts = gather(made)
    assert [row.score.task for row in facts.not_scorable] == ["atari-bowling"]
    atari = facts.evaluation.domains[0]
    assert (atari.num_tasks, atari.expert.num_tasks if atari.expert else 0) == (2, 1)
    row = re.search(r'<tr data-task="atari-bowling".*?</tr>', page_of(made), re.DOTALL)
    assert row is not None and "not scorable" in row[0] and "spark" not in row[0]


def test_weak_tasks_are_named_worst_first(made: Path) -> None:
    facts = gather(made)
    means = [row.score.score.mean for row in facts.weakest if row.score.score]
    assert means == sorted(means) and all(mean < 0.5 for mean in means)
    weak = {s.task for s in facts.evaluation.tasks if s.score and s.score.mean < 0.5}
    assert {row.score.task for row in facts.weakest} == weak
    for task in weak:
        assert f'<tr data-task="{task}" data-domain="{task.partition("-")[0]}" data-is="weak' in page_of(made)


def test_jats_own_figures_stand_beside_whole_domains_only(made: Path) -> None:
    facts = gather(made)
    assert not facts.has_jat_iqms
    whole = replace(facts, num_known={domain.domain: domain.num_tasks for domain in facts.evaluation.domains})
    assert [whole.jat_iqm(domain) for domain in whole.evaluation.domains] == [0.14, 0.99, 0.65, 0.85]


def test_what_is_missing_is_said(out: Path) -> None:
    manifest = read_json(out / "dataset" / "manifest.json")
    manifest["tasks"]["mujoco-ant"] = manifest["tasks"]["mujoco-pusher"]
    manifest["missing"] = {"mujoco-ant": {"train": 250, "test": 3}, "mujoco-hopper": {"train": 300}}
    write_json(out / "dataset" / "manifest.json", manifest)
    page = page_of(report(AgentReportConfig(out=out)).parents[1])
    assert "In the dataset, but not evaluated: mujoco-ant." in page
    missing = "mujoco-ant (250 train and 3 test episodes), mujoco-hopper (all of it)"
    assert f"Planned, but not in the dataset, so the agent learned without: {missing}." in page
    assert "mujoco-pusher: 1 episode of the agent not counted (observation not finite)" in page
    assert "MuJoCo: 1 of 11 tasks" in page


def test_the_same_results_give_the_same_page_and_write_nothing(out: Path) -> None:
    report(AgentReportConfig(out=out))
    files = [path for path in (out / "report").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    report(AgentReportConfig(out=out))
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_what_no_task_has_is_no_column_and_one_is_told_as_one(made: Path, tmp_path: Path) -> None:
    write_run(tmp_path, "mujoco-pendulum", "mujoco-pendulum")
    page = page_of(report(AgentReportConfig(out=tmp_path)).parents[1])
    assert "human-normalised" not in page and "human-normalised" in page_of(made)
    assert "The task is scorable." in page
    assert [_duration(seconds) for seconds in (1.2, 89, 120)] == ["1 second", "89 seconds", "2.0 minutes"]


def test_a_run_without_training_dataset_films_and_curve_has_a_report(out: Path) -> None:
    for folder in ("train", "dataset", "experts", "report", "evaluation/films"):
        shutil.rmtree(out / folder)
    (out / "evaluation" / "curve.json").unlink()
    page = page_of(report(AgentReportConfig(out=out)).parents[1])
    assert "The checkpoint was not trained in this run." in page
    assert "There is no dataset in this run." in page
    assert "<video" not in page


def test_the_report_shows_how_the_shares_of_the_draws_moved(made: Path, out: Path) -> None:
    assert "Adaptive sampling" not in page_of(made)
    log = out / "train" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for number, row in enumerate(rows[99::100], 1):
        row |= {"share/mujoco-ant": 0.2 * number, "share/atari-pong": 1 - 0.2 * number, "need/mujoco-ant": 0.5}
        row["sampling_seconds"] = 30.0 * number
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(report(AgentReportConfig(out=out)).parents[1])
    assert "Measuring took 2.0 minutes of the training." in page
    assert "most drawn at the end: mujoco-ant, atari-pong" in page


def test_the_report_of_another_checkpoint_says_nothing_of_the_training_in_this_run(out: Path) -> None:
    own = page_of(out)
    assert "26.4 M parameters, trained for 20,000 steps on 80,000,000 time steps in 2.5 hours on 2 cores of AMD" in own
    scores = read_json(out / "evaluation" / "scores.json")
    scores["settings"] |= {"checkpoint": "owner/other", "weights": "fedcba9876543210"}
    write_json(out / "evaluation" / "other" / "scores.json", scores)
    page = report(AgentReportConfig(out=out, name="other"))
    assert page == out / "report" / "other" / "index.html"
    text = page.read_text()
    assert "owner/other" in text and "M parameters" not in text and "Scores along training" not in text
    assert "The checkpoint was not trained in this run." in text
    assert page_of(out) == own


def test_the_plot_of_a_study_is_in_the_page(out: Path) -> None:
    (out / "sweep-kappa").mkdir()
    (out / "sweep-kappa" / "kappa.png").write_bytes(b"a picture")
    assert "Studies" not in page_of(out)
    page = page_of(report(AgentReportConfig(out=out)).parents[1])
    assert '<img src="data:image/png;base64,YSBwaWN0dXJl" alt="scores by kappa">' in page


def test_every_id_is_there_once_and_every_reference_leads_to_one(made: Path) -> None:
    page = page_of(made)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-labelledby="([^"]+)"|for="([^"]+)"|href="#([^"]+)"', page)
    assert {name for names in named for name in names if name} <= set(ids)


def test_names_from_files_cannot_become_markup(out: Path) -> None:
    path = out / "evaluation" / "scores.json"
    scores = read_json(path)
    scores["settings"]["checkpoint"] = "<script>alert(1)</script>"
    write_json(path, scores)
    page = page_of(report(AgentReportConfig(out=out)).parents[1])
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page


def test_a_video_shows_agent_and_expert_of_one_seed(made: Path) -> None:
    for task, size in (("atari-pong", (160, 210)), ("metaworld-reach", (240, 240))):
        with av.open(str(made / "report" / "videos" / f"{task}.mp4")) as container:
            (stream,) = container.streams.video
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (2 * size[0] + 4, size[1] + 22)
            assert stream.frames == 30 + 20  # and a second of the end
    assert page_of(made).count('<script type="text/plain" id="video-') == 2
    assert f"seed {SEED:,}: agent 10.00 in 60 steps, expert 20.00 in 60 steps ({EXPERT})" in page_of(made)


def add_film(out: Path, task: str, number: int, earned: float, success: bool | None) -> None:
    """One more film of the agent, of the seed of this number."""
    directory, seed = RunLayout(out).agent_films(task), seeds_of("evaluate", number + 1)[number]
    film = (directory / f"{SEED}.mp4").read_bytes()
    (directory / f"{seed}.mp4").write_bytes(film)
    first = read_json(directory / f"{SEED}.json")
    write_json(directory / f"{seed}.json", {**first, "seed": seed, "total_reward": earned, "success": success})


def test_a_failure_is_shown_beside_the_first_episodes(out: Path) -> None:
    for number in range(12):
        add_film(out, "metaworld-reach", number, 700.0 - number, number not in (8, 10))
    page = page_of(report(AgentReportConfig(out=out)).parents[1])
    start = page.index('<template id="facts-metaworld-reach">')
    facts = page[start : page.index("</template>", start)]
    shown = [seed - SEED for seed in map(int, re.findall(r"seed (\d+):", facts.replace(",", "")))]
    assert shown == [0, 1, 2, 10]  # of the two failures the worse
    assert facts.count("solved") == 3 and facts.count("failed") == 1


def test_the_headline_is_the_number_of_the_table_with_the_iqm_beside_it(made: Path) -> None:
    page, overall = page_of(made), gather(made).evaluation.overall.expert
    assert overall is not None and abs(overall.mean.mean - overall.iqm.mean) > 0.01
    tiles = page[page.index('<dl class="tiles">') : page.index("</dl>")]
    first = tiles.split('<div class="tile"')[1]
    assert "<dt>All tasks</dt>" in first
    assert f'<dd class="big">{overall.mean.mean:.2f}</dd>' in first and f"IQM {overall.iqm.mean:.2f}" in first
    (total,) = re.findall(r'<tr class="total">.*?</tr>', page, re.DOTALL)
    assert re.findall(r"<td>([-0-9.]+) <small>", total)[0] == f"{overall.mean.mean:.2f}"


def test_a_task_off_jat_s_scale_is_named_and_is_in_no_mean_on_it(tmp_path: Path) -> None:
    write_run(tmp_path, "metaworld-reach", "metaworld-disassemble,metaworld-reach")
    page = page_of(report(AgentReportConfig(out=tmp_path)).parents[1])
    assert "hardly better than random there: metaworld-disassemble." in page
    (domain,) = load_evaluation(tmp_path).domains
    assert domain.jat_scale is not None and domain.jat_scale.num_tasks == 1
    assert domain.expert is not None and domain.expert.num_tasks == 2


def test_the_returns_of_agent_expert_and_random_are_drawn_for_every_task(made: Path) -> None:
    page = page_of(made)
    for row in gather(made).rows:
        label = re.search(rf'aria-label="{row.score.task}: returns from .*?"', page)
        assert label is not None and all(f"{who} " in label[0] for who in ("agent", "expert", "random"))
        histogram = returns_histogram(row.score)
        assert histogram is not None
        assert histogram.low == min(*row.score.returns, *row.score.expert_returns, *row.score.random_returns)


def test_the_machine_is_named(made: Path) -> None:
    page = page_of(made)
    assert "Trained on 2 cores of AMD EPYC 9B14, with bfloat16 instructions, 16 GB of memory." in page
    assert f"This page was written on {this_machine()}." in page


def test_the_film_that_ends_first_stays_dimmed(out: Path, tmp_path: Path) -> None:
    directory = RunLayout(out).expert_films("atari-pong", EXPERT)
    write_mp4(directory / f"{SEED}.mp4", [np.full((210, 160, 3), 200, np.uint8)] * 10, 20)
    pairs = find_pairs(out, "atari-pong", SETTINGS.revision, [EXPERT])
    video = make_videos(tmp_path, {"atari-pong": pairs}, 1_000_000)["atari-pong"]
    assert video.path is not None
    right = [float(frame[60:, 180:].mean()) for frame in read_mp4(video.path)]
    assert all(abs(value - 200) < 8 for value in right[:10])
    assert all(abs(value - 70) < 8 for value in right[10:])


def test_films_of_another_checkpoint_are_not_shown(made: Path) -> None:
    assert find_pairs(made, "atari-pong", "another checkpoint", [EXPERT]) == []
    (alone,) = find_pairs(made, "atari-pong", SETTINGS.revision, ["sac-1", "sac-2"])
    assert (alone.agent.seed, alone.expert) == (SEED, None)
    (beside,) = find_pairs(made, "atari-pong", SETTINGS.revision, ["sac-1", EXPERT])
    assert beside.expert is not None and beside.expert.revision == EXPERT


def test_videos_keep_to_the_limit_or_are_left_out(out: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 210, 160, 3), np.uint8)
    write_mp4(RunLayout(out).agent_films("atari-pong") / f"{SEED}.mp4", noise, 20, crf=10)
    pairs = {"atari-pong": find_pairs(out, "atari-pong", SETTINGS.revision, [EXPERT])}
    small = make_videos(tmp_path / "small", pairs, 150_000)["atari-pong"]
    assert small.path is not None and 10_000 < small.path.stat().st_size <= 150_000
    left_out = make_videos(tmp_path / "none", pairs, 500)["atari-pong"]
    assert left_out.path is None
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["atari-pong.json"]


@pytest.mark.slow
def test_the_page_keeps_to_its_limit(out: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 240, 240, 3), np.uint8)
    for task in ("atari-pong", "metaworld-reach"):
        write_mp4(RunLayout(out).agent_films(task) / f"{SEED}.mp4", noise, 20, crf=16)
    assert report(AgentReportConfig(out=out)).stat().st_size > 2_000_000
    page = report(AgentReportConfig(out=out, max_mb=2))
    assert page.stat().st_size < 2_000_000
    assert page.read_text().count('<script type="text/plain" id="video-') == 2


def test_a_grid_has_a_tile_of_each_film(made: Path, tmp_path: Path) -> None:
    (pair,) = find_pairs(made, "atari-pong", SETTINGS.revision, [EXPERT])
    grids = make_grids(tmp_path, {"atari": {str(number): pair for number in range(5)}}, 1_000_000)
    frames = list(read_mp4(grids["atari"]))
    assert len(frames) == 30
    tile = frames[0][:210, :160].mean()
    assert frames[0][:210, 164:324].mean() == pytest.approx(tile, abs=2)
    assert frames[0].shape[1] == 3 * 164 - 4 and frames[0].shape[0] == 2 * 214 - 4
    assert frames[0][214:, 328:].mean() < 4  # the sixth tile is empty


def test_without_results_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `jat evaluate`"):
        report(AgentReportConfig(out=tmp_path))
    with pytest.raises(UserError, match="--max-mb is 1"):
        AgentReportConfig(max_mb=1)


def test_the_terminal_shows_tasks_and_domains(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(load_evaluation(made))
    shown = capsys.readouterr().out
    assert "7 to 8 unseen seeds" in shown
    assert "not scorable" in shown and "mean of metaworld" in shown
