from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experts.importing.imports import import_expert
from experts.importing.published import suggested_repositories
from experts.network import NetworkPolicy
from experts.store import StoredExpert, read_arrays, stored_experts
from pipeline.envs.policy import Observations
from pipeline.envs.registry import all_tasks
from pipeline.errors import UserError
from tests.experts.stable_baselines.models import bomb, make_model, predictions, some_observations, task_named
from tests.hub import client_environment
from tests.hub_models import make_sample_factory, serve_models

pytestmark = pytest.mark.usefixtures("nothing_embedded")

HOPPER = task_named("mujoco-hopper")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A folder as RL Zoo uploads it: a model, its statistics, and a zip of something else."""
    return make_zoo(tmp_path / "zoo")


def make_zoo(folder: Path) -> Path:
    folder.mkdir()
    model, normaliser = make_model("ppo", HOPPER)
    model.save(folder / "ppo-Hopper-v4.zip")
    normaliser.save(str(folder / "vec_normalize.pkl"))
    (folder / "config.yml").write_text("!!python/object/apply:collections.OrderedDict\n- - - normalize\n    - true\n")
    (folder / "README.md").write_text("A card\n")
    shutil.make_archive(str(folder / "train_eval_metrics"), "zip", folder, "README.md")
    return folder


def act(expert: StoredExpert, observations: np.ndarray) -> np.ndarray:
    assert expert.record.network is not None
    policy = NetworkPolicy(HOPPER, expert.record.network, read_arrays(expert), "here")
    actions = policy.act(range(len(observations)), Observations(observations, None, np.zeros(len(observations))))
    return np.clip(actions, -1, 1)


def test_a_zoo_folder_acts_as_its_model_does(zoo: Path, tmp_path: Path) -> None:
    expert = import_expert(HOPPER, str(zoo), tmp_path)
    observations = some_observations(HOPPER)
    expected = predictions(*make_model("ppo", HOPPER), observations)
    np.testing.assert_allclose(act(expert, observations), expected, rtol=0, atol=1e-5)
    assert expert.record.kind == "ppo"
    assert expert.record.origin == f"Loaded from ppo-Hopper-v4.zip in {zoo} with vec_normalize.pkl."
    assert [stored.record for stored in stored_experts(tmp_path, HOPPER.name)] == [expert.record]


def test_the_same_source_is_the_same_revision_and_sampling_is_another(zoo: Path, tmp_path: Path) -> None:
    source = str(zoo / "ppo-Hopper-v4.zip")
    greedy, again = import_expert(HOPPER, source, tmp_path), import_expert(HOPPER, source, tmp_path)
    sampled = import_expert(HOPPER, source, tmp_path, sampled=True)
    assert greedy.record.revision == again.record.revision != sampled.record.revision
    assert greedy.record.network is not None
    assert sampled.record.network == dataclasses.replace(greedy.record.network, sampled=True)
    assert len(stored_experts(tmp_path, HOPPER.name)) == 2


def test_statistics_are_also_found_where_rl_zoo_logs_them(zoo: Path, tmp_path: Path) -> None:
    expected = import_expert(HOPPER, str(zoo), tmp_path)
    (zoo / "Hopper-v4").mkdir()
    (zoo / "vec_normalize.pkl").rename(zoo / "Hopper-v4" / "vecnormalize.pkl")
    assert import_expert(HOPPER, str(zoo), tmp_path).record.revision == expected.record.revision


def test_the_best_model_of_a_training_is_preferred(zoo: Path, tmp_path: Path) -> None:
    shutil.copyfile(zoo / "ppo-Hopper-v4.zip", zoo / "best_model.zip")
    assert "best_model.zip" in import_expert(HOPPER, str(zoo), tmp_path).record.origin


def test_a_sample_factory_folder_is_recognised(tmp_path: Path) -> None:
    folder = make_sample_factory(tmp_path / "sf")
    expert = import_expert(HOPPER, str(folder), tmp_path)
    assert (expert.record.kind, expert.record.origin) == ("sample-factory", f"Loaded from {folder}.")
    observations = some_observations(HOPPER)
    expected = np.tanh(0.1 * observations.sum(1, keepdims=True)) * 8 * 0.2
    np.testing.assert_allclose(act(expert, observations), np.clip(np.repeat(expected, 3, 1), -1, 1), rtol=0, atol=1e-5)


def test_an_expert_of_another_run_is_taken_over_with_its_record(zoo: Path, tmp_path: Path) -> None:
    first = import_expert(HOPPER, str(zoo), tmp_path / "a", sampled=True)
    second = import_expert(HOPPER, str(first.folder), tmp_path / "b")
    assert second.record == first.record
    assert second.folder == tmp_path / "b" / first.folder.relative_to(tmp_path / "a")
    assert all(torch.equal(array, read_arrays(second)[name]) for name, array in read_arrays(first).items())


# What cannot be imported; nothing is ever stored.


def refused(source: str | Path, out: Path, message: str, task: str = HOPPER.name) -> None:
    with pytest.raises(UserError, match=message):
        import_expert(task_named(task), str(source), out / "refused")
    assert not (out / "refused").exists()


def test_a_source_that_holds_nothing_says_what_was_found_and_what_to_try(tmp_path: Path) -> None:
    hint = r"try hub:farama-minari/Hopper-v5-SAC-expert or hub:qgallouedec/sample-factory-hopper-v2"
    refused(tmp_path / "none", tmp_path, rf"none does not exist; expected a Sample Factory folder.*{hint}")
    folder = tmp_path / "empty"
    folder.mkdir()
    refused(folder, tmp_path, "empty holds no expert: found nothing of use; expected")
    (folder / "notes.txt").touch()
    refused(folder, tmp_path, r"empty holds no expert: found notes\.txt; expected a Sample Factory folder")
    refused(folder / "notes.txt", tmp_path, r"notes\.txt is a file but no \.zip")


def test_several_models_are_listed(zoo: Path, tmp_path: Path) -> None:
    shutil.copyfile(zoo / "ppo-Hopper-v4.zip", zoo / "last.zip")
    refused(zoo, tmp_path, r"holds 2 zips \(last\.zip, ppo-Hopper-v4\.zip\); give one of them")


def test_a_model_without_the_statistics_it_was_trained_with_is_refused(zoo: Path, tmp_path: Path) -> None:
    (zoo / "vec_normalize.pkl").rename(tmp_path / "lost.pkl")
    refused(zoo, tmp_path, r"trained on normalised observations, as config\.yml says.*put its vec_normalize\.pkl")
    for value in ("false", "\"{'norm_obs': False, 'norm_reward': True}\""):
        (zoo / "config.yml").write_text(f"- - - normalize\n    - {value}\n")
        assert import_expert(HOPPER, str(zoo), tmp_path).record.network is not None


def test_several_statistics_are_listed(zoo: Path, tmp_path: Path) -> None:
    shutil.copyfile(zoo / "vec_normalize.pkl", zoo / "rl_model_vecnormalize_100_steps.pkl")
    refused(zoo, tmp_path, r"several statistics .*\(rl_model_vecnormalize_100_steps\.pkl, vec_normalize\.pkl\)")


def test_damaged_files_are_named(zoo: Path, tmp_path: Path) -> None:
    marker = tmp_path / "gone-off"
    (zoo / "vec_normalize.pkl").write_bytes(bomb(marker))
    refused(zoo, tmp_path, r"vec_normalize\.pkl is a pickle of something else")
    assert not marker.exists()
    (zoo / "train_eval_metrics.zip").unlink()
    (zoo / "ppo-Hopper-v4.zip").write_bytes(b"PK\x03\x04")
    (zoo / "vec_normalize.pkl").unlink()
    (zoo / "config.yml").unlink()
    refused(zoo, tmp_path, r"ppo-Hopper-v4\.zip is not a whole zip")


def test_an_expert_of_another_task_is_refused(zoo: Path, tmp_path: Path) -> None:
    stored = import_expert(HOPPER, str(zoo), tmp_path).folder
    refused(stored, tmp_path, "is an expert of mujoco-hopper, not of mujoco-walker", "mujoco-walker")
    (zoo / "vec_normalize.pkl").unlink()
    (zoo / "config.yml").unlink()
    refused(
        zoo, tmp_path, r"takes observations 11 .*; mujoco-walker \(Walker2d-v4\) has observations 17", "mujoco-walker"
    )


def test_a_damaged_expert_of_another_run_is_refused(zoo: Path, tmp_path: Path) -> None:
    stored = import_expert(HOPPER, str(zoo), tmp_path).folder
    weights = stored / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(stored, tmp_path, r"weights\.safetensors cannot be read")
    (stored / "expert.json").write_text("{}")
    refused(stored, tmp_path, r"expert\.json is not a record of an expert")


def test_a_sample_factory_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = make_sample_factory(tmp_path / "sf")
    shutil.rmtree(folder / "checkpoint_p0")
    refused(folder, tmp_path, "holds no Sample Factory checkpoint")
    (folder / "checkpoint_p0").mkdir()
    (folder / "cfg.json").unlink()
    refused(folder, tmp_path, "is not a folder of Sample Factory")


@pytest.mark.parametrize("source", ["hub:", "hub:hopper", "hub:a/b/c", "hub:a/b@", "hub:a/b c", "hub:../secret@x"])
def test_a_malformed_repository_is_refused(source: str, tmp_path: Path) -> None:
    refused(source, tmp_path, "names no repository.*expected hub:owner/name")


def test_repositories_are_suggested_for_every_task_that_was_published() -> None:
    suggested = {task.name: suggested_repositories(task) for task in all_tasks()}
    assert suggested["atari-pong"] == ("edbeeching/atari_2B_atari_pong_1111",)
    assert suggested["atari-montezumarevenge"] == ("edbeeching/atari_2B_atari_montezuma_1111",)
    assert suggested["metaworld-peg-insert-side"] == ("qgallouedec/sample-factory-peg-insert-side-v2",)
    # Experts of v3 or v5 would not fit: these observe other things.
    assert suggested["mujoco-ant"] == ("qgallouedec/sample-factory-ant-v2",)
    without = {name for name, names in suggested.items() if not names and not name.startswith("babyai-")}
    assert without == {"atari-surround"}


# Statistics and the model they belong to.


def trained(path: Path, algorithm: str = "ppo", started: int = 1, normalised: bool | None = None) -> None:
    """A model as it is saved after a training."""
    model, _ = make_model(algorithm, HOPPER)
    model.start_time = started
    if normalised is not None:
        model._last_obs, model._last_original_obs = np.zeros((1, 11)), np.ones((1, 11)) if normalised else None
    model.save(path)


def save_statistics(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    make_model("ppo", HOPPER)[1].save(str(path))


def is_normalised(source: Path, out: Path) -> bool:
    network = import_expert(HOPPER, str(source), out).record.network
    assert network is not None
    return network.normalise


def test_a_model_alone_says_that_it_was_trained_on_normalised_observations(tmp_path: Path) -> None:
    trained(tmp_path / "model.zip", normalised=True)
    refused(tmp_path / "model.zip", tmp_path, r"on normalised .*VecNormalize.*, as its data says.*put its vec")
    trained(tmp_path / "plain.zip", normalised=False)
    assert not is_normalised(tmp_path / "plain.zip", tmp_path)


def test_a_configuration_one_folder_deeper_is_read(tmp_path: Path) -> None:
    """As RL Zoo logs it: ``Hopper-v4.zip`` beside ``Hopper-v4/config.yml``."""
    trained(tmp_path / "Hopper-v4.zip")
    (tmp_path / "Hopper-v4").mkdir()
    (tmp_path / "Hopper-v4" / "config.yml").write_text("- - - normalize\n    - true\n")
    refused(tmp_path / "Hopper-v4.zip", tmp_path, r"as Hopper-v4/config\.yml says, but without their statistics")
    save_statistics(tmp_path / "Hopper-v4" / "vecnormalize.pkl")
    assert is_normalised(tmp_path / "Hopper-v4.zip", tmp_path)


def test_statistics_that_may_be_another_model_s_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "one.zip", started=1)
    trained(tmp_path / "two.zip", started=2)
    save_statistics(tmp_path / "vec_normalize.pkl")
    message = r"vec_normalize\.pkl belongs to it or to (one|two)\.zip, which another training made"
    for name in ("one.zip", "two.zip"):
        refused(tmp_path / name, tmp_path, message)
    (tmp_path / "vec_normalize.pkl").rename(tmp_path / "one_vecnormalize.pkl")
    assert is_normalised(tmp_path / "one.zip", tmp_path / "out")
    assert not is_normalised(tmp_path / "two.zip", tmp_path / "out")


def test_models_of_one_training_share_its_statistics(tmp_path: Path) -> None:
    for name in ("Hopper-v4.zip", "best_model.zip", "rl_model_100_steps.zip"):
        trained(tmp_path / name, started=7)
    save_statistics(tmp_path / "Hopper-v4" / "vecnormalize.pkl")
    save_statistics(tmp_path / "rl_model_vecnormalize_100_steps.pkl")
    for name, expected in (
        ("best_model.zip", "vecnormalize.pkl"),
        ("Hopper-v4.zip", "vecnormalize.pkl"),
        ("rl_model_100_steps.zip", "rl_model_vecnormalize_100_steps.pkl"),
    ):
        expert = import_expert(HOPPER, str(tmp_path / name), tmp_path / "out" / name)
        assert expert.record.origin.endswith(f"{name} with {expected}.")


def test_statistics_beside_a_model_that_saw_observations_as_they_are_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "model.zip", normalised=False)
    save_statistics(tmp_path / "vec_normalize.pkl")
    refused(tmp_path / "model.zip", tmp_path, r"observations as they are.*vec_normalize\.pkl belongs to another")


# Strangers' records: names in them become folders, and lead nowhere else.


def write_record(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "expert.json").read_text())
    (folder / "expert.json").write_text(json.dumps(record | changes))


@pytest.mark.parametrize(
    "kind", ["../../..", "/etc", "..", "a/b", "", "sac\n", "<b>", "a*b", "a+b", ".hidden", 7, None]
)
def test_a_kind_that_is_a_path_writes_and_removes_nothing(kind: Any, zoo: Path, tmp_path: Path) -> None:
    stored = import_expert(HOPPER, str(zoo), tmp_path / "a").folder
    neighbour = tmp_path / f"neighbour-{stored.name[-8:]}"
    neighbour.mkdir()
    (neighbour / "keep").touch()
    write_record(stored, kind=kind)
    before = set(tmp_path.rglob("*"))
    refused(stored, tmp_path, r"expert\.json is not a record of an expert")
    write_record(stored, kind=str(neighbour).rpartition("-")[0])  # a folder that is there, with the revision's name
    refused(stored, tmp_path, r"expert\.json is not a record of an expert .*kind")
    assert before == set(tmp_path.rglob("*"))


@pytest.mark.parametrize("kind", ["random", "scripted", "bot", "best", "best-success", "released"])
def test_a_network_is_not_called_as_a_rule_or_a_choice_is(kind: str, zoo: Path, tmp_path: Path) -> None:
    stored = import_expert(HOPPER, str(zoo), tmp_path / "a").folder
    write_record(stored, kind=kind, revision=f"{kind}-1")
    refused(stored, tmp_path, f"is called {kind}, which is not the name of a network")


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "../x"},
        {"revision": "ppo-../../x"},
        {"revision": "sac-12345678"},
        {"origin": "one\ntwo"},
        {"origin": "\x1b[2J"},
        {"versions": {"a\nb": "1"}},
        {"training": {"steps": "many"}},
        {"training": {"seconds": -1}},
        {"network": 7},
        {"network": {"hidden": "x"}},
        {"surprise": 1},
    ],
)
def test_a_record_with_a_wrong_field_is_refused(changes: dict[str, Any], zoo: Path, tmp_path: Path) -> None:
    stored = import_expert(HOPPER, str(zoo), tmp_path / "a").folder
    write_record(stored, **changes)
    refused(stored, tmp_path, r"expert\.json is not a record of an expert \(.*\); remove")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": [8] * 100_000}, "100,000 hidden layers"),
        ({"hidden": [10**9, 10**9]}, "are not all from 1 to 100,000"),
        ({"hidden": [90_000, 90_000]}, "head.weight has shape 3x8, expected 3x90000"),
        ({"hidden": [-1]}, "are not all from 1"),
        ({"observation_shape": []}, "takes observations  and"),
        ({"encoder": "convnet_atari"}, "encoder 'convnet_atari' is not for 11"),
        ({"activation": "exec"}, "activation 'exec'"),
        ({"scale": 0.0}, "no divisor"),
        ({"clip": float("inf")}, "not finite"),
    ],
)
def test_a_description_of_a_network_is_checked_before_it_is_built(
    changes: dict[str, Any], message: str, zoo: Path, tmp_path: Path
) -> None:
    stored = import_expert(HOPPER, str(zoo), tmp_path / "a")
    assert stored.record.network is not None
    write_record(stored.folder, network=dataclasses.asdict(stored.record.network) | changes)
    refused(stored.folder, tmp_path, message)


def test_links_out_of_a_source_are_not_followed(zoo: Path, tmp_path: Path) -> None:
    stored = import_expert(HOPPER, str(zoo), tmp_path / "a").folder
    for folder, name in (
        (stored, "weights.safetensors"), (stored, "curve.csv"), (zoo, "vec_normalize.pkl"), (zoo, "ppo-Hopper-v4.zip"),
    ):  # fmt: skip
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        refused(folder, tmp_path, f"{name} is a link that leads out of")
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
    factory = make_sample_factory(tmp_path / "sf")
    (factory / "cfg.json").rename(tmp_path / "cfg.json")
    (factory / "cfg.json").symlink_to(tmp_path / "cfg.json")
    refused(factory, tmp_path, r"cfg\.json is a link that leads out of")


# The Hub: a server on this machine that speaks the few requests of a download.

FIRST, SECOND = "1" * 40, "2" * 40
RUN = """
import json, sys
from pathlib import Path
from experts.importing import imports
from pipeline.publishing import hub
from pipeline.errors import UserError
from pipeline.envs.registry import select_tasks

job = json.load(sys.stdin)
hub.HUB_TIMEOUT_S = job["timeout_s"]
(task,) = select_tasks("mujoco-hopper")
answers = []
for source in job["sources"]:
    try:
        record = imports.import_expert(task, source, Path(job["out"])).record
        answers.append([record.kind, record.origin])
    except UserError as error:
        answers.append(["error", str(error)])
json.dump(answers, sys.stdout)
"""


def start(address: str, folder: Path, sources: list[str], timeout_s: float = 10.0) -> subprocess.Popen[str]:
    """Import sources in a process of its own, where the Hub's settings come from the environment."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        env=client_environment(address, folder / "cache"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"sources": sources, "out": str(folder / "out"), "timeout_s": timeout_s}))
    process.stdin.close()
    process.stdin = None
    return process


def answers_of(process: subprocess.Popen[str], sources: list[str]) -> dict[str, tuple[str, str]]:
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return {source: (kind, text) for source, (kind, text) in zip(sources, json.loads(output), strict=True)}


@dataclass(frozen=True)
class Outcome:
    """What each source gave: the kind and the origin of the expert, or ``error`` and the message."""

    online: dict[str, tuple[str, str]]
    unreachable: dict[str, tuple[str, str]]
    silent: dict[str, tuple[str, str]]
    asked: list[str]


ONLINE = [
    "hub:someone/ppo-Hopper-v4", "hub:someone/ppo-Hopper-v4@v1", f"hub:someone/ppo-Hopper-v4@{SECOND}",
    "hub:someone/ppo-Hopper-v4@v9", "hub:someone/sample-factory-hopper", "hub:someone/nothing", "hub:someone/unknown",
    "hub:broken/down", "hub:broken/page",
]  # fmt: skip
CACHED, UNKNOWN = "hub:someone/ppo-Hopper-v4", "hub:someone/elsewhere"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("hub")
    first, second = make_zoo(folder / "first"), make_zoo(folder / "second")
    make_model("sac", HOPPER)[0].save(first / "ppo-Hopper-v4.zip")
    (second / "replay.mp4").write_bytes(b"film")
    empty = folder / "empty"
    empty.mkdir()
    (empty / "README.md").touch()
    repositories = {
        "someone/ppo-Hopper-v4": {FIRST: first, SECOND: second},
        "someone/sample-factory-hopper": {FIRST: make_sample_factory(folder / "sf")},
        "someone/nothing": {FIRST: empty},
    }
    with serve_models(repositories) as fake:
        online = answers_of(start(fake.address, folder, ONLINE), ONLINE)
    # Nobody listens where the server was; behind the other address somebody listens and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sources = [CACHED, UNKNOWN]
        processes = [
            start(fake.address, folder, sources),
            start(f"http://127.0.0.1:{silent.getsockname()[1]}", folder, sources, timeout_s=0.2),
        ]
        unreachable, unanswered = [answers_of(process, sources) for process in processes]
    yield Outcome(online, unreachable, unanswered, fake.asked)
    shutil.rmtree(folder)


def test_a_repository_is_imported_and_named_with_its_commit(hub: Outcome) -> None:
    origin = "Loaded from ppo-Hopper-v4.zip in someone/ppo-Hopper-v4 on the Hugging Face Hub, commit"
    latest = ("ppo", f"{origin} {SECOND} with vec_normalize.pkl.")
    assert hub.online["hub:someone/ppo-Hopper-v4"] == latest
    assert hub.online[f"hub:someone/ppo-Hopper-v4@{SECOND}"] == latest
    assert hub.online["hub:someone/ppo-Hopper-v4@v1"] == ("sac", f"{origin} {FIRST} with vec_normalize.pkl.")
    kind, text = hub.online["hub:someone/sample-factory-hopper"]
    assert (kind, text.endswith(f"commit {FIRST}.")) == ("sample-factory", True)


def test_only_what_matters_is_downloaded(hub: Outcome) -> None:
    names = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert names == {
        "ppo-Hopper-v4.zip", "vec_normalize.pkl", "config.yml", "cfg.json", "best_000000007_1000_reward_3.5.pth",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:someone/ppo-Hopper-v4@v9", "someone/ppo-Hopper-v4 has no revision v9; give a branch, a tag or a commit"),
        ("hub:someone/unknown", "there is no public repository someone/unknown"),
        ("hub:someone/unknown", "try hub:farama-minari/Hopper-v5-SAC-expert"),
        ("hub:someone/nothing", "holds no expert: found nothing of use"),
        ("hub:broken/page", "broken/page cannot be downloaded from the Hugging Face Hub (JSONDecodeError"),
        ("hub:broken/down", "answered 500 for broken/down; try again later"),
    ],
)
def test_a_repository_that_cannot_be_imported_is_named(source: str, message: str, hub: Outcome) -> None:
    kind, text = hub.online[source]
    assert kind == "error" and message in text


def test_without_an_answer_of_the_hub_what_was_downloaded_before_is_taken(hub: Outcome) -> None:
    for answers in (hub.unreachable, hub.silent):
        assert answers[CACHED] == hub.online[CACHED]


def test_a_hub_that_does_not_answer_is_an_error(hub: Outcome) -> None:
    for answers, reason in ((hub.unreachable, "ConnectError"), (hub.silent, "Timeout")):
        kind, text = answers[UNKNOWN]
        assert kind == "error"
        assert "someone/elsewhere cannot be downloaded from the Hugging Face Hub" in text
        assert reason in text and "check the network, or download the repository elsewhere" in text
