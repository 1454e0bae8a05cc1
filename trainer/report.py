"""The report of a run: one self-contained HTML page, and the same table in the terminal.

    python -m trainer.report --out runs/default

Reads what the other stages wrote and writes ``OUT/report/index.html``, which opens from disk without network: plots
are inline SVG, videos are embedded.
"""

from __future__ import annotations

import base64
import io
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cli import parse, print_table, run
from pipeline.errors import UserError
from pipeline.files import digest_of, read_json, replacing, sha256_of, write_json
from pipeline.film import agent_films
from pipeline.manifest import DatasetManifest, TaskManifest
from pipeline.scores import Interval
from pipeline.seeds import seeds_of
from pipeline.versions import versions_of
from trainer.logs import TrainManifest, read_log, train_manifest_path
from trainer.results import TaskScore, domain_scores, load_scores, scores_path

log = logging.getLogger(__name__)

TEMPLATE = "report.html.j2"
PACKAGES = ("torch", "ray", "datasets", "pyarrow", "gymnasium", "numpy")


@dataclass(frozen=True)
class ReportConfig:
    """Write the report of a run."""

    out: Path = Path("runs/default")
    """Root of all outputs of a run."""


@dataclass(frozen=True)
class TaskRow:
    """One task in the report: its scores, its data, its video as a data URI (None if there is none)."""

    score: TaskScore
    data: TaskManifest | None
    video: str | None


def report(config: ReportConfig) -> Path:
    """Write the page if anything it shows has changed, and return its path.

    Raises:
        UserError: nothing is trained or evaluated in this run.
    """
    scores = load_scores(config.out)
    if not train_manifest_path(config.out).exists():
        raise UserError(f"no finished training in {config.out}; run `make train` with the same OUT first")
    directory = config.out / "report"
    page = directory / "index.html"
    inputs = _inputs_digest(config.out, scores)
    written = read_json(directory / "manifest.json") if (directory / "manifest.json").exists() else None
    if page.exists() and written == {"inputs": inputs, "page": sha256_of(page)}:
        log.info("up to date: %s", page)
        return page
    log.info("rendering %s", page)
    with replacing(page) as temporary:
        temporary.write_text(_render(config.out, scores), encoding="utf-8")
    write_json(directory / "config.json", config)
    write_json(directory / "manifest.json", {"inputs": inputs, "page": sha256_of(page)})
    log.info("written: %s, %.1f MB", page, page.stat().st_size / 1e6)
    return page


def _video_path(out: Path, score: TaskScore) -> Path:
    """The first film of the agent."""
    return agent_films(out, score.task) / f"{seeds_of('evaluate', 1)[0]}.mp4"


def _inputs_digest(out: Path, scores: Sequence[TaskScore]) -> str:
    videos = [path for score in scores if (path := _video_path(out, score)).exists()]
    files = [scores_path(out), train_manifest_path(out), Path(__file__), Path(__file__).with_name(TEMPLATE), *videos]
    return digest_of([sha256_of(path) for path in files])


def _render(out: Path, scores: Sequence[TaskScore]) -> str:
    import jinja2

    dataset = _dataset_manifest(out)
    rows = [
        TaskRow(score, dataset.tasks.get(score.task) if dataset else None, _data_uri(_video_path(out, score)))
        for score in scores
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(TEMPLATE).render(
        rows=rows,
        domains=domain_scores(scores),
        training=TrainManifest(**read_json(train_manifest_path(out))),
        train_config=_flat(read_json(out / "train" / "config.json")),
        bars=_bars(scores),
        curve=_training_curve(out),
        versions={"python": platform.python_version(), **versions_of(PACKAGES)},
        configs={
            stage: _flat(read_json(path))
            for stage in ("experts", "shards", "dataset", "evaluation")
            if (path := out / stage / "config.json").exists()
        },
        out=out,
    )


def _dataset_manifest(out: Path) -> DatasetManifest | None:
    path = out / "dataset" / DatasetManifest.FILE_NAME
    return DatasetManifest.load(path) if path.exists() else None


def _data_uri(video: Path) -> str | None:
    if not video.exists():
        return None
    return "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Nested settings under dotted names, as the command line spells them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        flat |= {f"{key}.{inner}": v for inner, v in _flat(value).items()} if nested else {key: value}
    return flat


# Chosen to read on white and on near-black alike.
INK, AGENT, ACCENTS = "#808890", "#3b82c4", ("#d97706", "#3b82c4", "#16a34a", "#9333ea")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelcolor=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Fixed salt and no date: the same numbers give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _bars(scores: Sequence[TaskScore]) -> str:
    """Normalised score per task with its interval, the expert's 1 and random's 0 as lines."""
    scorable = [score for score in scores if score.score is not None]
    figure, axes = _figure(8, 0.6 + 0.38 * len(scorable))
    positions = np.arange(len(scorable))[::-1]
    intervals = [score.score or Interval(0, 0, 0) for score in scorable]
    means = np.array([interval.mean for interval in intervals])
    errors = np.array([[i.mean - i.low, i.high - i.mean] for i in intervals]).reshape(-1, 2).T
    axes.barh(positions, means, height=0.62, color=AGENT, xerr=errors, error_kw={"ecolor": INK, "capsize": 3})
    axes.axvline(1, color=INK, linestyle="--", linewidth=1)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(positions, [score.task for score in scorable])
    axes.set_xlabel("normalised score (0 = random, 1 = expert), 95 % interval")
    return _svg(figure)


def _training_curve(out: Path) -> str:
    """Action loss per domain against real time steps seen, smoothed over a fiftieth of the run."""
    rows = read_log(out / "train" / "log.jsonl")
    figure, axes = _figure(8, 3.2)
    names = sorted({key for row in rows for key in row if key.startswith("action_loss/")})
    for name, colour in zip(names, ACCENTS, strict=False):
        points = [(row["timesteps"], row[name]) for row in rows if name in row]
        timesteps, losses = (np.array(values, np.float64) for values in zip(*points, strict=True))
        window = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(timesteps[window - 1 :] / 1e6, smooth, color=colour, label=name.removeprefix("action_loss/"))
    axes.set_yscale("log")
    axes.set_xlabel("time steps trained on, millions")
    axes.set_ylabel("action loss")
    axes.legend(frameon=False, labelcolor=INK)
    return _svg(figure)


def print_scores(scores: Sequence[TaskScore]) -> None:
    """The results in the terminal."""
    from rich.table import Table

    table = Table(title=f"Agent on {scores[0].num_episodes} unseen seeds per task")
    table.add_column("task", no_wrap=True)
    for heading in ("random", "expert", "agent", "normalised", "95 % interval", "success"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in scores:
        table.add_row(
            score.task,
            f"{score.random:.2f}",
            f"{score.expert:.2f}",
            f"{score.agent.mean:.2f}",
            *_cells(score.score),
            "-" if score.success_rate is None else f"{score.success_rate:.2f}",
        )
    table.add_section()
    for domain, interval in domain_scores(scores).items():
        table.add_row(f"mean of {domain}", "", "", "", *_cells(interval), "", style="bold")
    print_table(table)


def _cells(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return "not scorable", "-"
    return f"{interval.mean:.2f}", f"[{interval.low:.2f}, {interval.high:.2f}]"


def main() -> None:
    from rich.console import Console

    config = parse(ReportConfig)
    page = report(config)
    print_scores(load_scores(config.out))
    Console().print(f"report: {page.absolute()}", soft_wrap=True)


if __name__ == "__main__":
    run("trainer.report")
