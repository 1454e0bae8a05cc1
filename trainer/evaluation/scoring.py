"""Computes scores from episodes: of a task, of a domain, of a whole evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.scoring.measurement import Measurement
from pipeline.scoring.scores import Aggregate, aggregate, is_scorable, jat_scale, jat_scores, mean_interval, normalise
from trainer.evaluation.results import OVERALL, DomainScore, Evaluation, Settings, TaskScore


def score_task(domain: str, agent: Measurement, random: Measurement, expert: Measurement) -> TaskScore:
    """Compute a task's results from the episodes of the agent and of its references."""
    returns = agent.accepted_returns
    random_mean, expert_mean = float(random.accepted_returns.mean()), float(expert.accepted_returns.mean())
    scores = _normalised(returns, random_mean, expert_mean)
    published = jat_scores().get(agent.task, {})
    bounds = jat_scale(agent.task) or (None, None)
    human_bounds = (published.get("random"), published.get("human"))
    on_jat_scale, human_scores = _normalised(returns, *bounds), _normalised(returns, *human_bounds)
    rejected = [reason for reason in agent.rejected if reason is not None]
    return TaskScore(
        task=agent.task,
        domain=domain,
        random=random_mean,
        expert=expert_mean,
        expert_kind=expert.policy,
        agent=mean_interval([returns]),
        scores=scores,
        score=mean_interval([np.array(scores)]) if scores else None,
        success_rate=agent.success_rate,
        num_episodes=len(returns),
        num_reference_episodes=min(len(random.accepted_returns), len(expert.accepted_returns)),
        jat_expert=published.get("expert"),
        score_on_jat_scale=float(np.mean(on_jat_scale)) if on_jat_scale else None,
        jat_score=_single(published.get("jat"), *bounds),
        returns=returns.tolist(),
        random_returns=random.accepted_returns.tolist(),
        expert_returns=expert.accepted_returns.tolist(),
        rejected={reason: rejected.count(reason) for reason in dict.fromkeys(rejected)},
        jat_random=published.get("random"),
        jat_return=published.get("jat"),
        jat_scale_scores=on_jat_scale,
        human=published.get("human"),
        human_scores=human_scores,
        human_score=mean_interval([np.array(human_scores)]) if human_scores else None,
        jat_human_score=_single(published.get("jat"), *human_bounds),
    )


def _normalised(returns: np.ndarray, low: float | None, high: float | None) -> list[float] | None:
    """Normalise returns such that the two means are 0 and 1; None if there is no such scale."""
    if low is None or high is None or not is_scorable(low, high) or not len(returns):
        return None
    scores: list[float] = normalise(returns, low, high).tolist()
    return scores


def _single(value: float | None, low: float | None, high: float | None) -> float | None:
    found = None if value is None else _normalised(np.array([value]), low, high)
    return found[0] if found else None


def score_domain(domain: str, tasks: Sequence[TaskScore]) -> DomainScore:
    """Aggregate the results of some tasks."""
    on_jat_scale = [task.jat_score for task in tasks if task.jat_scale_scores and task.jat_score is not None]
    on_human_scale = [task.jat_human_score for task in tasks if task.jat_human_score is not None]
    successes = [task.success_rate for task in tasks if task.success_rate is not None]
    return DomainScore(
        domain=domain,
        num_tasks=len(tasks),
        not_scorable=[task.task for task in tasks if task.scores is None],
        expert=_aggregate_of([task.scores for task in tasks]),
        jat_scale=_aggregate_of([task.jat_scale_scores for task in tasks]),
        human=_aggregate_of([task.human_scores for task in tasks]),
        jat_mean=float(np.mean(on_jat_scale)) if on_jat_scale else None,
        jat_median=float(np.median(on_jat_scale)) if on_jat_scale else None,
        jat_human_mean=float(np.mean(on_human_scale)) if on_human_scale else None,
        success_rate=float(np.mean(successes)) if successes else None,
    )


def _aggregate_of(samples: Sequence[list[float] | None]) -> Aggregate | None:
    scored = [sample for sample in samples if sample]
    return aggregate(scored) if scored else None


def evaluation_of(settings: Settings, tasks: Sequence[TaskScore]) -> Evaluation:
    """Build an evaluation from the results of its tasks."""
    domains = dict.fromkeys(task.domain for task in tasks)
    by_domain = [score_domain(domain, [task for task in tasks if task.domain == domain]) for domain in domains]
    return Evaluation(settings, list(tasks), by_domain, score_domain(OVERALL, tasks))
