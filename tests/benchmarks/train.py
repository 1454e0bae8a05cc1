"""Benchmark of loading and training on this machine, compared with JAT's code.

    python -m tests.benchmarks.train --out runs/default

Uses ``OUT/dataset`` and writes only the memory-mapped arrays (``OUT/train/cache``). The implementations run in
alternating rounds; the medians of all rounds are printed, and finally each goal with the measured value.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.babyai import NUM_INTEGERS
from pipeline.envs.task import IMAGE, Task
from pipeline.errors import UserError
from pipeline.tables import Column, Table, print_tables
from trainer.config import RECIPES, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from trainer.data.sources import TrainingData
    from trainer.training.run import TrainingRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchTrainConfig:
    """Compare loading and training with the baseline, JAT's code."""

    task: str = "*"
    """Tasks to use: task name, domain, glob, or comma list of these, among the tasks of the dataset."""
    out: Path = Path("runs/default")
    """Root directory of all outputs of a run."""
    tasks_per_domain: int = 3
    """Number of these tasks to use per domain, evenly spaced in the task table."""
    recipes: str = "jat,base"
    """Comma list of recipes to train with."""
    hidden_size: int = 256
    """Width of all networks; the released JAT has 768."""
    num_layers: int = 4
    """Number of blocks of all networks; the released JAT has 12."""
    num_heads: int = 4
    """Attention heads per block; the released JAT has 12."""
    batch_steps: int = 2048
    """Time steps per batch, including padding."""
    rounds: int = 3
    """Number of rounds of everything."""
    steps: int = 5
    """Optimiser steps per round."""
    threads: int = 2
    """Number of CPU threads."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "tasks_per_domain", "rounds", "steps", "threads")
        for name in self.recipes.split(","):
            if name not in RECIPES:
                raise UserError(f"unknown recipe {name!r} in --recipes; allowed: {', '.join(RECIPES)}")


@dataclass
class StepRates:
    """Measurements of one implementation: real time steps per second and shares of padding and of waiting for data, per
    round."""

    name: str
    num_parameters: int
    timesteps_per_s: list[float] = field(default_factory=list)
    padding: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Loading:
    """Windows per second: of our loader, of the baseline's, and of the ``datasets.map`` that the baseline needs
    first."""

    ours: float
    plain: float
    mapping: float


@dataclass(frozen=True)
class Goal:
    """A goal, a minimum or a maximum, and the measured value."""

    what: str
    wanted: float
    reached: float
    unit: str
    is_least: bool

    @property
    def is_reached(self) -> bool:
        return self.reached >= self.wanted if self.is_least else self.reached <= self.wanted


def recipe_config(config: BenchTrainConfig, name: str, tasks: Sequence[Task]) -> TrainConfig:
    """Return a recipe at the size of this benchmark, with a tokenizer that needs no download."""
    recipe = RECIPES[name]()
    sizes: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "vocab_size": 512,
    }
    if isinstance(recipe.model, ModelConfig):
        text_tokens = recipe.text_tokens
        sizes |= {"max_discrete_size": NUM_INTEGERS + text_tokens, "picture_size": 0, "idle_decoder": False}
    return dataclasses.replace(
        recipe,
        task=",".join(task.name for task in tasks),
        out=config.out,
        tokenizer="bpe",
        steps=1_000_000,
        batch_steps=max(config.batch_steps, recipe.longest_context),
        micro_batches=1,
        validation_steps=0,
        threads=config.threads,
        model=dataclasses.replace(recipe.model, **sizes),
    )


def choose_spread(config: BenchTrainConfig, tasks: Sequence[Task]) -> list[Task]:
    """Choose a few tasks of each domain. Image tasks are left out on a CPU: their encoder dominates the time in both
    cases."""
    import torch

    chosen = []
    for domain in dict.fromkeys(task.domain for task in tasks):
        members = [task for task in tasks if task.domain == domain]
        if any(task.observation == IMAGE for task in members) and not torch.cuda.is_available():
            continue
        stride = max(1, len(members) // config.tasks_per_domain)
        chosen += members[::stride][: config.tasks_per_domain]
    return chosen


def bench_loading(config: BenchTrainConfig, recipe: TrainConfig, tasks: Sequence[Task], windows: int = 40) -> Loading:
    """Measure both loaders, on datasets that are already converted, or mapped."""
    from tests.benchmarks.baselines.training import padded_windows
    from trainer.data.sources import open_sources

    data = open_sources(recipe, tasks)
    ours, plain, mapping = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        for source, task in zip(data.sources, tasks, strict=True):
            started = time.perf_counter()
            rows = padded_windows(recipe.dataset_dir, task, data.tokenizer, recipe.text_tokens, Path(directory))
            mapping.append((time.perf_counter() - started) / len(rows))
            few = rows.select(range(min(windows, len(rows))))
            turns = [(_seconds_per_window(source.batches), _seconds_of_plain(few) / len(few)) for _ in range(3)]
            ours.append(median(turn[0] for turn in turns))
            plain.append(median(turn[1] for turn in turns))
    # Every task is used equally often: the mean time of a window is the mean over tasks.
    return Loading(*(len(tasks) / sum(seconds) for seconds in (ours, plain, mapping)))


def _seconds_per_window(batches: Any, num_batches: int = 8) -> float:
    started = time.perf_counter()
    windows = sum(len(part.mask) for index in range(num_batches) for part in batches.parts(index))
    return (time.perf_counter() - started) / windows


def _seconds_of_plain(rows: Any) -> float:
    from tests.benchmarks.baselines.training import read_batches

    started = time.perf_counter()
    for _ in read_batches(rows, 20):
        pass
    return time.perf_counter() - started


class PlainTraining:
    """JAT's network on as many rows of 256 steps as fit into a batch, of the tasks that a run draws."""

    def __init__(self, config: TrainConfig, data: TrainingData, seed: int = 0) -> None:
        import torch

        from tests.benchmarks.baselines.training import PlainJat

        assert isinstance(config.model, ModelConfig)
        torch.manual_seed(seed)
        self._config, self._data = config, data
        self._mixture = data.mixture(dataclasses.replace(config, steps=10_000))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = PlainJat(config.model).to(self._device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate, foreach=False)
        self._draw = 0

    def one_step(self) -> tuple[int, int]:
        """Run an optimiser step; return its numbers of real and padded time steps."""
        import torch

        from tests.benchmarks.baselines.training import WINDOW_STEPS, pad_rows
        from trainer.data.loader import to_device

        source, index = self._mixture[self._draw]
        self._draw += 1
        self._optimizer.zero_grad(set_to_none=True)
        batch = pad_rows(
            self._data.sources[source].batches.parts(index), max(1, self._config.batch_steps // WINDOW_STEPS)
        )
        self.model.losses(to_device(batch, torch.device(self._device))).total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.grad_clip)
        self._optimizer.step()
        return int(batch.mask.sum()), batch.mask.numel()


def bench_training(config: BenchTrainConfig, tasks: Sequence[Task]) -> list[StepRates]:
    """Measure the baseline first, then each recipe, in alternating rounds."""
    from trainer.data.sources import open_sources
    from trainer.train import make_identity
    from trainer.training.run import TrainingRun

    jat = recipe_config(config, "jat", tasks)
    names = config.recipes.split(",")
    with tempfile.TemporaryDirectory() as directory:
        runs = []
        for name in names:
            recipe = recipe_config(config, name, tasks)
            runs.append(TrainingRun(recipe, tasks, Path(directory, name), make_identity(recipe, tasks)))
        plain = PlainTraining(jat, open_sources(jat, tasks))
        results = [StepRates("plain", _num_parameters(plain.model, plain.one_step))]
        results += [StepRates(n, _num_parameters(r.model, r.one_step)) for n, r in zip(names, runs, strict=True)]
        for _ in range(config.rounds):
            _time_plain(plain, results[0], config.steps)
            for run_, rates in zip(runs, results[1:], strict=True):
                _time_run(run_, rates, config.steps)
        for run_ in runs:
            run_.close()
    return results


def _num_parameters(model: Any, one_step: Callable[[], Any], warm_up: int = 6) -> int:
    """Count the parameters that these tasks train; the steps also serve as warm-up."""
    trained = set()
    for _ in range(warm_up):
        one_step()
        trained |= {name for name, p in model.named_parameters() if p.grad is not None}
    return sum(p.numel() for name, p in model.named_parameters() if name in trained)


def _time_plain(plain: PlainTraining, rates: StepRates, num_steps: int) -> None:
    started = time.perf_counter()
    counts = [plain.one_step() for _ in range(num_steps)]
    seconds = time.perf_counter() - started
    real, padded = (sum(numbers) for numbers in zip(*counts, strict=True))
    rates.timesteps_per_s.append(real / seconds)
    rates.padding.append(1 - real / padded)
    rates.waiting.append(0.0)  # its batches are cut from our arrays, which takes negligible time


def _time_run(trained: TrainingRun, rates: StepRates, num_steps: int) -> None:
    before, waited = trained.progress, trained.waited_s
    started = time.perf_counter()
    for _ in range(num_steps):
        trained.one_step()
    seconds = time.perf_counter() - started
    real = trained.progress.timesteps - before.timesteps
    rates.timesteps_per_s.append(real / seconds)
    rates.padding.append(1 - real / (trained.progress.padded_timesteps - before.padded_timesteps))
    rates.waiting.append((trained.waited_s - waited) / seconds)


def goals_of(loading: Loading, results: Sequence[StepRates], on_gpu: bool) -> list[Goal]:
    """Return the goals of every implementation except the baseline, which is the first of ``results``."""
    plain = results[0]
    goals = [Goal("windows/s beside JAT's loader", 50, loading.ours / loading.plain, "x", is_least=True)]
    for rates in results[1:]:
        speed = Goal(f"{rates.name}: timesteps/s beside plain", 6 if on_gpu else 3, _speed(rates, plain), "x", True)
        padding = Goal(f"{rates.name}: padding", 5, 100 * median(rates.padding), "%", is_least=False)
        waiting = Goal(f"{rates.name}: waiting for data", 3, 100 * median(rates.waiting), "%", is_least=False)
        goals += [speed, padding, waiting]
    return goals


def _speed(rates: StepRates, plain: StepRates) -> float:
    """Return the speed-up over the baseline, round by round."""
    return median(a / b for a, b in zip(rates.timesteps_per_s, plain.timesteps_per_s, strict=True))


def print_report(loading: Loading, results: Sequence[StepRates], on_gpu: bool) -> None:
    log.info(
        "loading with one thread: %s windows/s, JAT's way %s (after datasets.map at %s)",
        *(f"{rate:,.0f}" for rate in dataclasses.astuple(loading)),
    )
    shown = {"M parameters": ".1f", "timesteps/s": ",.0f", "x plain": ".1f", "padding %": ".1f", "waiting %": ".1f"}
    table = Table("training", *(Column(heading, show) for heading, show in shown.items()))
    for rates in results:
        table.add_row(
            rates.name, rates.num_parameters / 1e6, median(rates.timesteps_per_s), _speed(rates, results[0]),
            100 * median(rates.padding), 100 * median(rates.waiting),
        )  # fmt: skip
    goals = Table("goal", "wanted", "here", "reached")
    for goal in goals_of(loading, results, on_gpu):
        wanted = f"at {'least' if goal.is_least else 'most'} {goal.wanted:g} {goal.unit}"
        goals.add_row(goal.what, wanted, f"{goal.reached:.1f} {goal.unit}", "yes" if goal.is_reached else "NO")
    print_tables({"trainings": table, "goals": goals})


def bench(config: BenchTrainConfig, tasks: Sequence[Task]) -> None:
    """Measure everything with some tasks of the dataset, and print the results."""
    import torch

    log.info("%s", ", ".join(task.name for task in tasks))
    loading = bench_loading(config, recipe_config(config, "jat", tasks), tasks)
    print_report(loading, bench_training(config, tasks), torch.cuda.is_available())


def main() -> None:
    from trainer.train import choose_tasks

    config = parse(BenchTrainConfig, prints_tables=True)
    all_tasks = choose_tasks(dataclasses.replace(recipe_config(config, "jat", ()), task=config.task))
    bench(config, choose_spread(config, all_tasks))


if __name__ == "__main__":
    run("tests.benchmarks.train")
