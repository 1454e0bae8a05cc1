"""Writes the card of a published network: what it is, its training data, its scores, and its usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.scoring.scores import Interval
from trainer.evaluation.results import DomainScore, Evaluation, TaskScore

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint

TEXT = """
# {name}

One transformer, {parameters:.1f} M parameters, that acts in {num_tasks} tasks{domains}{corpora}. Made with JAT
pipeline, in which it loads:

```python
from pipeline.envs.registry import select_tasks
from trainer.agent import Agent
from trainer.pretrained.load import from_pretrained

checkpoint = from_pretrained("{name}")
(task,) = select_tasks("{example}")
agent = Agent(checkpoint, [task])
```

or `jat evaluate --checkpoint {name} --task {example}`. The folder is numbers and descriptions; nothing in it is
executed.

## Training

| | |
|---|---|
{training}

## Scores

{scores}
"""

SCORES = """The agent plays seeds that are in no dataset, {how}. Score: 0 is a random policy, 1 the expert that was
imitated; 95 % intervals of a bootstrap within each task. IQM is the mean of all episodes without the lowest and the
highest quarter.

| domain | tasks | mean of tasks | IQM |
|---|---|---|---|
{domains}
{unscorable}
| task | random | expert | agent | score | success | episodes |
|---|---|---|---|---|---|---|
{tasks}
"""


def model_card(checkpoint: Checkpoint, name: str, evaluation: Evaluation | None = None) -> str:
    """Return the text of a README.md.

    Args:
        checkpoint: what is published.
        name: ``owner/name``, or any other name of the network.
        evaluation: evaluation of this checkpoint; may cover only some of its tasks.
    """
    import yaml

    config = checkpoint.config
    counts: dict[str, int] = {}
    for task in config.tasks:
        counts[task.split("-")[0]] = counts.get(task.split("-")[0], 0) + 1
    body = TEXT.format(
        name=name,
        parameters=sum(p.numel() for p in checkpoint.model.parameters()) / 1e6,
        num_tasks=len(config.tasks),
        corpora=f" and goes on with texts ({', '.join(config.corpora)})" if config.corpora else "",
        domains=f" ({', '.join(f'{domain} {count}' for domain, count in counts.items())})" if counts else "",
        example=config.tasks[0] if config.tasks else "TASK",
        training="\n".join(f"| {key} | {value} |" for key, value in _training(checkpoint).items()),
        scores=_scores(evaluation) if evaluation else "Not evaluated yet: `jat evaluate`.",
    )
    front = yaml.safe_dump(_front_matter(name, evaluation), sort_keys=False, width=1000)
    return f"---\n{front}---\n{body}"


def _training(checkpoint: Checkpoint) -> dict[str, str]:
    config = checkpoint.config
    steps = ", ".join([str(config.context_steps), *(f"{name} {steps}" for name, steps in config.contexts.items())])
    found = {
        "optimiser steps": f"{config.step:,}",
        "time steps seen": f"{config.trained_timesteps:,}",
        "looks back, in time steps": steps,
        "digest of the dataset": f"`{config.dataset_digest}`",
        "options of the network": f"`{config.model}`",
    }
    return {key: value for key, value in found.items() if value not in ("0", "``")}


def _scores(evaluation: Evaluation) -> str:
    domains = [
        f"| {d.domain} | {d.num_tasks - len(d.not_scorable)} | {_format(d.expert.mean if d.expert else None)} "
        f"| {_format(d.expert.iqm if d.expert else None)} |"
        for d in evaluation.summaries
    ]
    tasks = [
        f"| {s.task} | {s.random:.2f} | {s.expert:.2f} | {s.agent.mean:.2f} | {_format(s.score)} "
        f"| {'' if s.success_rate is None else f'{s.success_rate:.2f}'} | {s.num_episodes} |"
        for s in evaluation.tasks
    ]
    unscorable = evaluation.overall.not_scorable
    note = f"\nNot scorable, because the expert is not better than random: {', '.join(unscorable)}.\n"
    return SCORES.format(
        how=evaluation.settings.how,
        domains="\n".join(domains),
        unscorable=note if unscorable else "",
        tasks="\n".join(tasks),
    ).rstrip()


def _format(interval: Interval | None) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]" if interval else "not scorable"


def _front_matter(name: str, evaluation: Evaluation | None) -> dict[str, Any]:
    """Return the metadata that the Hub reads: kind, tags and results by domain and task (``model-index``)."""
    results = []
    if evaluation:
        domains = [domain for domain in evaluation.domains if domain.expert is not None]
        results = [*map(_domain_result, domains), *map(_task_result, evaluation.tasks)]
    front: dict[str, Any] = {
        "license": "apache-2.0",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "imitation-learning", "jat"],
    }
    return front | ({"model-index": [{"name": name, "results": results}]} if results else {})


def _domain_result(score: DomainScore) -> dict[str, Any]:
    metrics = []
    if score.expert:
        metrics.append(("iqm_expert_normalized_total_reward", "IQM of expert-normalised return", score.expert.iqm.mean))
    if score.human:
        metrics.append(("iqm_human_normalized_total_reward", "IQM of human-normalised return", score.human.iqm.mean))
    return _result(score.domain, metrics)


def _task_result(score: TaskScore) -> dict[str, Any]:
    metrics = [("total_reward", "Mean return", score.agent.mean)]
    if score.score:
        metrics.append(("expert_normalized_total_reward", "Expert-normalised return", score.score.mean))
    if score.human_score:
        metrics.append(("human_normalized_total_reward", "Human-normalised return", score.human_score.mean))
    if score.success_rate is not None:
        metrics.append(("success_rate", "Success rate", score.success_rate))
    return _result(score.task, metrics)


def _result(name: str, metrics: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    return {
        "task": {"type": "reinforcement-learning", "name": "Reinforcement Learning"},
        "dataset": {"name": name, "type": name},
        "metrics": [{"type": kind, "name": title, "value": round(value, 4)} for kind, title, value in metrics],
    }
