"""Ablations: compares each design choice of the base recipe with its alternatives, for docs/ablations.md.

    python -m tests.benchmarks.ablations --out runs/full

Trains every variant below on the same data for the same processor time with several seeds, evaluates each on the same
episodes (``tests/benchmarks/study.py``), and writes the table into the document. The same command resumes an
interrupted study.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import parse, run
from pipeline.errors import UserError
from tests.benchmarks.study import Result, StudyConfig, Variant, run_study, write_between
from trainer.config import RECIPES, BaseModelConfig, ModelConfig, jat_small

log = logging.getLogger(__name__)

MARKER = "ABLATIONS"


def make_variants(model: BaseModelConfig) -> list[Variant]:
    """Return the recipe itself, and every alternative that differs from its network."""
    alternatives = [
        Variant("jat", {"model": _jat_network()}, "JAT's network, as recipe `jat-small`"),
        Variant("not-normalised", {"normalise": False}, "raw observations and rewards"),
        *(
            Variant(f"window-{steps}", {"model.window_steps": steps}, f"attention over {steps} time steps")
            for steps in (1, 4, 32, 128)
        ),
        *(
            Variant(f"noise-{std:g}", {"model.observation_noise": std}, f"observation noise {std:g}")
            for std in (0.0, 0.03, 0.1, 0.3)
        ),
        Variant("kappa-0.005", {"model.observation_loss_coef": 0.005}, "next observations predicted, as JAT"),
        Variant(
            "kappa-0.05", {"model.observation_loss_coef": 0.05}, "next observations predicted, JAT's weight tenfold"
        ),
        Variant(
            "noise-and-kappa",
            {"model.observation_noise": 0.1, "model.observation_loss_coef": 0.05},
            "noise 0.1 and kappa 0.05 together",
        ),
        Variant("half-width", {"model.hidden_size": model.hidden_size // 2}, "half the width"),
        Variant("double-width", {"model.hidden_size": 2 * model.hidden_size}, "twice the width"),
        Variant("half-depth", {"model.num_layers": max(1, model.num_layers // 2)}, "half the blocks"),
    ]
    return [Variant("base", {}, "the recipe"), *(v for v in alternatives if not _is_taken(v, model))]


def _jat_network() -> ModelConfig:
    """Return the network of recipe ``jat-small``, with vectors just wide enough for Meta-World: the default is for
    MuJoCo's humanoid."""
    model = jat_small().model
    assert isinstance(model, ModelConfig)
    return dataclasses.replace(model, max_continuous_size=40)


def _is_taken(variant: Variant, model: BaseModelConfig) -> bool:
    options = {key.removeprefix("model."): v for key, v in variant.changes.items() if key.startswith("model.")}
    return bool(options) and all(getattr(model, name) == value for name, value in options.items())


@dataclass(frozen=True)
class AblationsConfig(StudyConfig):
    """Compare the design choices of the base recipe one by one."""

    document: Path = Path("docs/ablations.md")
    """Document that the table is written into, between its markers."""


def describe(results: Sequence[Result], config: StudyConfig) -> str:
    """Return the table and its settings as Markdown."""
    lines = [
        f"Trainings of each variant: {results[0].seeds}, of {config.seconds} processor seconds; "
        f"{config.episodes} episodes per task and seed, {len(results[0].tasks)} tasks: "
        f"{', '.join(f'`{task}`' for task in results[0].tasks)}.",
        "",
        "| variant | what | score [95 % interval] | against the recipe | parameters | time steps/s | time steps |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        difference = "" if r.difference is None else f"{r.difference.mean:+.3f} [{r.difference.low:+.3f}, "
        difference += "" if r.difference is None else f"{r.difference.high:+.3f}]"
        lines.append(
            f"| {r.variant} | {r.about} | {r.score.mean:.3f} [{r.score.low:.3f}, {r.score.high:.3f}] | {difference} | "
            f"{r.num_parameters / 1e6:.2f} M | {r.rate:,.0f} | {r.timesteps / 1e6:.2f} M |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    config = parse(AblationsConfig)
    model = RECIPES[config.training]().model
    if not isinstance(model, BaseModelConfig):
        raise UserError(f"--training {config.training} has a network of another kind; take one of `base`'s")
    results = run_study("ablations", make_variants(model), config)
    if results:
        write_between(config.document, MARKER, describe(results, config))
        log.info("wrote %s", config.document)


if __name__ == "__main__":
    run("tests.benchmarks.ablations")
