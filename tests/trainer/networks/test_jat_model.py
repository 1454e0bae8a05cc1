"""The network against numbers of the released implementation.

``jat_parity.json`` holds what the released JAT returns on weights and inputs made by formulas (given in the file);
``jat_parameters.json`` holds its parameter names and shapes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE
from trainer.batch import StepBatch, TextBatch
from trainer.config import ModelConfig
from trainer.networks.jat_model import JatModel

HERE = Path(__file__).parent
PARITY = json.loads((HERE / "jat_parity.json").read_text())
# Other names of ``transformer.wte.weight`` in the released file.
ALIASES = ("multi_discrete_encoder.0.weight", "single_discrete_encoder.weight")
B, T = 2, 9
NO_TASKS = torch.zeros(B, dtype=torch.int64)  # the released model is told of none


def wave(shape: tuple[int, ...], key: float) -> torch.Tensor:
    return torch.sin(0.7311 * torch.arange(math.prod(shape), dtype=torch.float64) + key).float().view(shape)


def ints(shape: tuple[int, ...], high: int, key: int) -> torch.Tensor:
    return ((7 * torch.arange(math.prod(shape)) + 3 * key) % high).view(shape)


def mask() -> torch.Tensor:
    ones = torch.ones(B, T, dtype=torch.bool)
    ones[1, 6:] = False
    return ones


BATCHES = {
    "continuous": lambda: StepBatch(
        CONTINUOUS, wave((B, T, 5), 0.1), wave((B, T), 0.3), wave((B, T, 3), 0.2), mask(), NO_TASKS
    ),
    "discrete": lambda: StepBatch(
        DISCRETE, ints((B, T, 11), 97, 1), wave((B, T), 0.4), ints((B, T), 7, 2), mask(), NO_TASKS
    ),
    "image": lambda: StepBatch(
        IMAGE, wave((B, T, 4, 84, 84), 0.5), wave((B, T), 0.6), ints((B, T), 6, 3), mask(), NO_TASKS
    ),
    "mixed": lambda: StepBatch(
        CONTINUOUS, wave((B, T, 4), 0.7), wave((B, T), 0.8), ints((B, T), 5, 4), mask(), NO_TASKS
    ),
}


TEXTS = {
    "text": lambda: TextBatch(ints((B, T), 97, 5), mask()),
    "text_and_image": lambda: TextBatch(ints((B, T), 97, 6), mask(), wave((B, 3, 32, 32), 0.9)),
}


@pytest.fixture(scope="module")
def model() -> JatModel:
    config = ModelConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        window_size=6,
        max_positions=32,
        vocab_size=97,
        max_continuous_size=13,
        max_discrete_size=11,
        picture_size=32,
    )
    model = JatModel(config)
    state = {}
    for number, (name, shape) in enumerate(sorted(PARITY["parameters"].items())):
        values = 0.05 * torch.sin(0.7311 * torch.arange(math.prod(shape), dtype=torch.float64) + number + 1)
        is_norm = len(shape) == 1 and name.endswith("weight")
        state[name] = values.float().view(shape) + (1.0 if is_norm else 0.0)
    model.load_state_dict(state)
    return model.eval()


def assert_same_output(output: torch.Tensor, expected: dict[str, Any]) -> None:
    """On every position, padding included: first values, sum and sum of squares."""
    assert list(output.shape) == expected["shape"]
    first = torch.tensor(expected["first"])
    torch.testing.assert_close(output.flatten()[: len(first)], first, atol=1e-5, rtol=0)
    assert output.double().sum().item() == pytest.approx(expected["sum"], abs=1e-4, rel=1e-4)
    assert output.double().square().sum().item() == pytest.approx(expected["square_sum"], rel=1e-4)


@pytest.mark.parametrize("case", BATCHES)
def test_losses_and_predictions_are_the_released_ones(model: JatModel, case: str) -> None:
    expected = PARITY["cases"][case]
    batch = BATCHES[case]()
    with torch.no_grad():
        losses = model.losses(batch)
        actions, observations = model(batch, hide_padding=True)
    assert losses.total.item() == pytest.approx(expected["loss"], abs=1e-5)
    assert losses.observation.item() == pytest.approx(expected["observation_loss"], abs=1e-5)
    assert losses.action.item() == pytest.approx(expected["action_loss"], abs=1e-5)
    for output, name in ((actions, "pred_actions"), (observations, "pred_observations")):
        if name not in expected:
            assert output is None
            continue
        # The fixture has the task's own width, the network the width all tasks share.
        shape = expected[name]["shape"]
        assert_same_output(output if len(shape) > 3 else output[..., : shape[-1]], expected[name])


@pytest.mark.parametrize("case", TEXTS)
def test_texts_and_pictures_give_the_released_loss_and_logits(model: JatModel, case: str) -> None:
    batch = TEXTS[case]()
    with torch.no_grad():
        losses = model.losses(batch)
        logits = model.text_logits(batch, hide_padding=True)
    assert losses.total.item() == pytest.approx(PARITY["cases"][case]["loss"], abs=1e-5)
    assert losses.observation.item() == 0
    assert_same_output(logits, PARITY["cases"][case]["logits"])


def test_every_case_of_the_fixture_is_tested() -> None:
    assert {*BATCHES, *TEXTS} == set(PARITY["cases"])


def test_parameters_have_the_released_names_and_shapes() -> None:
    released = json.loads((HERE / "jat_parameters.json").read_text())
    expected = {name: tuple(shape) for name, shape in released.items() if name not in ALIASES}
    with torch.device("meta"):
        model = JatModel(ModelConfig())
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert sum(p.numel() for p in model.parameters()) == 192_701_771


def test_what_padding_hides_counts_nowhere(model: JatModel) -> None:
    """The training path, which does not hide padding, says the same on every real position."""
    for batch in (BATCHES["continuous"](), BATCHES["image"]()):
        with torch.no_grad():
            shown, hidden = model(batch)[0], model(batch, hide_padding=True)[0]
        torch.testing.assert_close(shown[mask()], hidden[mask()], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(shown[~mask()], hidden[~mask()])


def test_padding_of_a_text_changes_no_loss(model: JatModel) -> None:
    batch = TEXTS["text_and_image"]()
    other = TextBatch(torch.where(mask(), batch.tokens, 0), batch.mask, batch.pictures)
    assert model.losses(other).total.item() == model.losses(batch).total.item()


def test_a_picture_changes_what_a_text_is_predicted_to_be(model: JatModel) -> None:
    batch = TEXTS["text_and_image"]()
    assert batch.pictures is not None
    darker = TextBatch(batch.tokens, batch.mask, batch.pictures - 0.5)
    assert model.losses(darker).total.item() != pytest.approx(model.losses(batch).total.item(), abs=1e-4)


def test_a_picture_of_another_size_is_named(model: JatModel) -> None:
    with pytest.raises(ValueError, match=r"\(3, 48, 48\) do not fit picture_size 32"):
        model.losses(TextBatch(ints((B, T), 97, 6), mask(), torch.zeros(B, 3, 48, 48)))


def test_padding_changes_no_loss(model: JatModel) -> None:
    batch = BATCHES["continuous"]()
    garbage = batch.observations.clone()
    garbage[1, 6:] = 1e3
    other = StepBatch(batch.kind, garbage, batch.previous_rewards, batch.actions, batch.mask, batch.tasks)
    assert model.losses(other).total.item() == model.losses(batch).total.item()


def test_no_prediction_sees_the_future(model: JatModel) -> None:
    batch = BATCHES["continuous"]()
    changed = batch.observations.clone()
    changed[:, 5:] += 1.0
    with torch.no_grad():
        before, _ = model(batch)
        after, _ = model(StepBatch(batch.kind, changed, batch.previous_rewards, batch.actions, batch.mask, batch.tasks))
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=0, rtol=0)
    assert not torch.allclose(after[:, 5:], before[:, 5:])


def test_an_action_is_not_an_input_of_its_own_prediction(model: JatModel) -> None:
    batch = BATCHES["discrete"]()
    changed = batch.actions.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 7
    with torch.no_grad():
        before, _ = model(batch)
        after, _ = model(
            StepBatch(batch.kind, batch.observations, batch.previous_rewards, changed, batch.mask, batch.tasks)
        )
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=0, rtol=0)
    assert not torch.allclose(after[:, 4:], before[:, 4:])


def test_a_cache_gives_what_the_whole_sequence_gives(model: JatModel) -> None:
    """Longer than the local window of 6, with slots at different positions."""
    batch = BATCHES["mixed"]()
    with torch.no_grad():
        embedded = model.embed_observations(batch.kind, batch.observations, batch.previous_rewards)
        whole = model.transformer(embedded)
        cache = model.transformer.new_cache(3, model.config.max_positions)
        slots = torch.tensor([2, 0])
        shift = 4  # slot 0 starts 4 positions late
        for step in range(T + shift):
            running = [i for i, start in enumerate((0, shift)) if start <= step < start + T]
            positions = torch.tensor([step - (0, shift)[i] for i in running])
            rows = embedded[torch.tensor(running), positions][:, None]
            out = model.transformer.extend(rows, cache, slots[running], positions[:, None])
            expected = whole[torch.tensor(running), positions]
            torch.testing.assert_close(out[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_vector_too_wide_for_the_network_is_named(model: JatModel) -> None:
    batch = StepBatch(CONTINUOUS, wave((B, T, 13), 0.1), wave((B, T), 0.3), wave((B, T, 3), 0.2), mask(), NO_TASKS)
    with pytest.raises(ValueError, match="14 does not fit max_continuous_size 13"):
        model(batch)


def test_the_cell_encoder_sees_every_integer_and_every_word() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        hidden_size=50, num_layers=1, num_heads=2, vocab_size=64, max_discrete_size=152, discrete_encoder="cells"
    )
    model = JatModel(config).eval()
    ids = torch.ones(1, 1, 152, dtype=torch.int64)
    rewards = torch.zeros(1, 1)
    with torch.no_grad():
        before = model.embed_observations(DISCRETE, ids, rewards)
        assert before.shape == (1, 1, 50)
        for position in (0, 1, 2, 3, 74, 147, 148, 151):
            changed = ids.clone()
            changed[..., position] = 2
            assert not torch.equal(model.embed_observations(DISCRETE, changed, rewards), before), position
        assert model.embed_observations(DISCRETE, ids, rewards + 0.5)[0, 0, -1] == 0.5


def test_few_discrete_observations_are_embedded_as_many_are(model: JatModel) -> None:
    """Few are squeezed token by token, many by way of the whole vocabulary."""
    ids = ints((3, 4, 11), 97, 1)
    with torch.no_grad():
        together = model.embed_observations(DISCRETE, ids, torch.zeros(3, 4))
        alone = model.embed_observations(DISCRETE, ids[1:2, :2], torch.zeros(1, 2))
    assert ids[1:2, :2].numel() < 97 < ids.numel()
    torch.testing.assert_close(alone, together[1:2, :2], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", ["continuous", "discrete"])
def test_labels_are_the_targets_and_steps_without_a_label_do_not_count(model: JatModel, case: str) -> None:
    batch = BATCHES[case]()
    labelled = batch.mask.clone()
    labelled[:, ::2] = False
    labels = -batch.actions if case == "continuous" else (batch.actions + 1) % 7
    wanted = dataclasses.replace(batch, labels=labels, labelled=labelled)
    garbled = dataclasses.replace(wanted, labels=torch.where(wanted.labelled[..., None] if case == "continuous"
                                                             else wanted.labelled, labels, 0))  # fmt: skip
    losses, before = model.losses(wanted), model.losses(batch)
    assert losses.action.item() == model.losses(garbled).action.item() != before.action.item()
    assert losses.observation.item() == before.observation.item()
    executed = dataclasses.replace(batch, labels=batch.actions, labelled=batch.mask)
    assert model.losses(executed).total.item() == before.total.item()
    silent = dataclasses.replace(wanted, labelled=torch.zeros_like(labelled))
    assert model.losses(silent).action.item() == 0
