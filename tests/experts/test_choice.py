from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from experts.choice import Mix, WeightedNames, choose, parse_choice
from experts.store import StoredExpert
from pipeline.envs.rollout import rollout
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from tests.fakes import (
    FAKE_COUNT,
    FAKE_PIXELS,
    assert_same_episode,
    random_mix,
    store_network,
    store_random,
    write_measurement,
)

pytestmark = pytest.mark.usefixtures("nothing_embedded")


def store(
    out: Path, action: float, returns: Sequence[float], kind: str = "ppo", successes: Sequence[bool] | None = None
) -> str:
    expert = store_network(out, FAKE_COUNT, action, kind)
    write_measurement(expert, FAKE_COUNT, returns, successes)
    return expert.record.revision


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run with a measured random policy that earns 0."""
    write_measurement(store_random(tmp_path), FAKE_COUNT, [0, 0])
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("best", (WeightedNames(1.0, ("best",)),)),
        ("scripted,bot", (WeightedNames(1.0, ("scripted", "bot")),)),
        ("sample-factory", (WeightedNames(1.0, ("sample-factory",)),)),
        ("0.7*best+0.3*scripted", (WeightedNames(0.7, ("best",)), WeightedNames(0.3, ("scripted",)))),
        (
            " 2 * best-success , best + random",
            (WeightedNames(2.0, ("best-success", "best")), WeightedNames(1.0, ("random",))),
        ),
    ],
)
def test_a_choice_is_parts_with_weights_and_preferences(text: str, expected: tuple[WeightedNames, ...]) -> None:
    assert parse_choice(text) == expected


@pytest.mark.parametrize(
    "text", ["", "best+", "+best", "a,,b", "0*best", "-1*best", "x*best", "nan*best", "inf*a", "*a,"]
)
def test_a_choice_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--expert"):
        parse_choice(text)


def test_every_way_to_name_an_expert(out: Path) -> None:
    rich = store(out, 0.1, [9, 9], successes=[True, False])
    good = store(out, 0.2, [5, 5], successes=[True, True])
    best_sac = store(out, 0.3, [4, 4], "sac")
    store(out, 0.4, [3, 3], "sac")
    meant = {
        "best": good,
        "best-return": rich,
        "best-success": good,
        "ppo": good,
        "sac": best_sac,
        good: good,
        "scripted,sac,ppo": best_sac,
        "random": "random-1",
        "random-1": "random-1",
    }
    assert {text: choose(out, FAKE_COUNT, text).revision for text in meant} == meant
    assert choose(out, FAKE_COUNT, "sac").kind == "sac"


def test_a_mix_has_weights_that_sum_to_1_and_names_itself(out: Path) -> None:
    ppo, sac = store(out, 0.1, [9, 9]), store(out, 0.2, [5, 5], "sac")
    mix = choose(out, FAKE_COUNT, "3*best+1*sac")
    assert (mix.kind, mix.revision) == ("0.75*ppo+0.25*sac", f"0.75*{ppo}+0.25*{sac}")
    # Its own name, the parts in another order and the same expert twice mean the same mix.
    for text in (mix.revision, "0.25*sac+0.75*ppo", f"0.5*ppo+0.25*{sac}+0.25*best"):
        assert choose(out, FAKE_COUNT, text) == mix
    assert choose(out, FAKE_COUNT, "0.9*ppo+0.1*best").revision == ppo
    thirds = choose(out, FAKE_COUNT, "ppo+2*sac")
    assert choose(out, FAKE_COUNT, thirds.revision) == thirds


def test_seeds_are_shared_out_by_weight_and_by_nothing_else(out: Path) -> None:
    store(out, 0.1, [9, 9])
    store(out, 0.2, [5, 5], "sac")
    mix = choose(out, FAKE_COUNT, "0.7*ppo+0.2*sac+0.1*random")
    kinds = [mix.actor(seed).kind for seed in range(10_000)]
    shares = [kinds.count(kind) / len(kinds) for kind in ("ppo", "sac", "random")]
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.02)
    assert kinds[:200] == [mix.actor(seed).kind for seed in range(200)]
    # The draw as documented, written out: the experts stand in the order of their revisions.
    assert [expert.record.kind for expert in mix.experts] == ["ppo", "random", "sac"]
    for seed in range(50):
        number = np.random.default_rng((seed, 2)).random()
        assert kinds[seed] == ("ppo" if number < 0.7 else "random" if number < 0.8 else "sac")


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_in_a_mix_every_seed_is_played_as_its_expert_alone_would(out: Path, num_envs: int) -> None:
    store(out, 0.25, [9, 9])
    store(out, -0.5, [5, 5], "sac")
    mix = choose(out, FAKE_COUNT, "ppo+sac+random")
    seeds = range(40)
    episodes = list(rollout(FAKE_COUNT, mix.make_policy(FAKE_COUNT), seeds, num_envs))
    alone = {
        expert.record.kind: list(rollout(FAKE_COUNT, Mix((expert,), (1.0,)).make_policy(FAKE_COUNT), seeds))
        for expert in mix.experts
    }
    for seed, episode in zip(seeds, episodes, strict=True):
        assert_same_episode(episode, alone[mix.actor(seed).kind][seed])
    fixed = {"ppo": 0.25, "sac": -0.5}
    played = [(mix.actor(e.seed).kind, e.actions.ravel().tolist()) for e in episodes]
    assert {kind for kind, _ in played} == {"ppo", "sac", "random"}
    assert all(set(actions) == {fixed[kind]} for kind, actions in played if kind in fixed)


def test_what_is_chosen_is_copied_into_the_run_with_the_random_policy(
    tmp_path: Path, nothing_embedded: Path
) -> None:  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    revision = store(elsewhere, 0.1, [9, 9])
    other = store(elsewhere, 0.2, [5, 5])
    write_measurement(store_random(elsewhere), FAKE_COUNT, [0, 0])
    (elsewhere / "experts").rename(nothing_embedded)
    (chosen,) = choose(tmp_path / "run", FAKE_COUNT).experts
    there = tmp_path / "run" / "experts" / "fake-count"
    assert chosen.folder == there / revision
    assert sorted(path.name for path in there.iterdir()) == sorted([revision, "random-1"])
    assert (there / "random-1" / "measurement.json").exists()
    assert not (there / other).exists()


def test_an_expert_that_is_not_measured_is_refused_with_the_fix(out: Path) -> None:
    expert = store_network(out, action=0.3)
    for name in ("ppo", expert.record.revision):
        with pytest.raises(
            UserError, match=rf"fake-count: expert {name} is not measured .* `jat experts --task fake-c"
        ):
            choose(out, FAKE_COUNT, name)
    with pytest.raises(UserError, match=r"--expert best means no measured expert; there: ppo-.*, random-1\. Run `jat"):
        choose(out, FAKE_COUNT)


def test_a_measurement_with_other_packages_is_none(out: Path) -> None:
    revision = store(out, 0.1, [9, 9])
    path = out / "experts" / "fake-count" / revision / "measurement.json"
    write_json(path, {**read_json(path), "versions": {"numpy": "0.1"}})
    with pytest.raises(UserError, match="is not measured with the installed packages"):
        choose(out, FAKE_COUNT, revision)


def test_an_expert_that_is_not_there_is_refused_with_those_that_are(out: Path) -> None:
    revision = store(out, 0.1, [9, 9])
    with pytest.raises(UserError, match=rf"--expert scripted,bot means no .*; there: {revision}, random-1\."):
        choose(out, FAKE_COUNT, "scripted,bot")
    with pytest.raises(UserError, match=r"--expert sac --out .*, or choose --expert random on purpose"):
        choose(out, FAKE_COUNT, "0.5*ppo+0.5*sac")


def test_a_task_without_success_has_no_best_by_it_but_may_have_a_second_choice(tmp_path: Path) -> None:
    assert FAKE_PIXELS.success is None
    with pytest.raises(UserError, match="--expert best-success means no measured expert"):
        choose(tmp_path, FAKE_PIXELS, "best-success")
    assert choose(tmp_path, FAKE_PIXELS, "best-success,random").revision == "random-1"


def test_a_weak_expert_is_refused_unless_allowed(out: Path) -> None:
    revision = store(out, 0.1, [0, 0, 0, 1])
    for text in ("best", revision, "0.5*best+0.5*random"):
        with pytest.raises(UserError, match=rf"{revision} is not clearly better than random: mean return 0\.25 \[0, "):
            choose(out, FAKE_COUNT, text)
    assert choose(out, FAKE_COUNT, "best", allow_weak=True).revision == revision


def test_without_a_measured_random_policy_nothing_is_known_to_be_better(tmp_path: Path) -> None:
    revision = store(tmp_path, 0.1, [9, 9])
    with pytest.raises(UserError, match="the random policy is not measured"):
        choose(tmp_path, FAKE_COUNT)
    assert choose(tmp_path, FAKE_COUNT, allow_weak=True).revision == revision


def test_the_random_policy_on_purpose_needs_no_measurement(tmp_path: Path) -> None:
    mix = choose(tmp_path, FAKE_COUNT, "random")
    assert (mix.kind, mix.revision) == ("random", "random-1")
    assert mix == random_mix(tmp_path, FAKE_COUNT)
    assert isinstance(mix.experts[0], StoredExpert)
    assert (mix.experts[0].folder / "expert.json").exists()
