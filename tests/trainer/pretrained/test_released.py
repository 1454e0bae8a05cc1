"""The released JAT's files, made here at a small size, and its full size as far as the shapes go."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.envs.policy import Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import CONTINUOUS, Task
from pipeline.errors import UserError
from trainer.agent import Agent
from trainer.batch import StepBatch
from trainer.config import ModelConfig
from trainer.data.tokenizer import encode, pad_id
from trainer.networks.jat_model import JatModel
from trainer.pretrained.load import from_pretrained
from trainer.pretrained.released import read_model_config

# The keys of the released config.json, at sizes that Meta-World and BabyAI fit.
CONFIG: dict[str, Any] = {
    "architectures": ["JatModel"],
    "model_type": "jat",
    "hidden_size": 50,
    "num_layers": 2,
    "num_heads": 2,
    "window_size": 6,
    "attention_types": [[["global", "local"], 1]],
    "attention_layers": ["global", "local"],
    "intermediate_size": None,
    "max_position_embeddings": 40,
    "vocab_size": 320,
    "max_continuous_size": 41,
    "max_discrete_value": 152,
    "image_size": 32,
    "patch_size": 16,
    "num_channels": 3,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "observation_loss_coef": 0.005,
    "action_loss_coef": 0.995,
}
FULL_SIZE = CONFIG | {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "window_size": 256,
    "attention_types": [[["global", "local"], 6]],
    "attention_layers": ["global", "local"] * 6,
    "max_position_embeddings": 512,
    "vocab_size": 50257,
    "max_continuous_size": 377,
    "max_discrete_value": 212,
    "image_size": 224,
}


def make_tokenizer() -> Tokenizer:
    """GPT-2's in little: bytes, the end of text last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["go to the red ball", "pick up the blue key"] * 5, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def make_model() -> JatModel:
    torch.manual_seed(0)
    return JatModel(read_model_config(CONFIG, "here")).eval()


Change = Callable[[dict[str, torch.Tensor]], Any]


def make_folder(folder: Path, config: dict[str, Any] = CONFIG, change: Change = lambda state: None) -> Path:
    """Released files with the weights of ``make_model``, changed in place by ``change``."""
    folder.mkdir(exist_ok=True)
    state = dict(make_model().state_dict())
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


def test_it_acts_as_the_network_whose_weights_they_are(tmp_path: Path) -> None:
    checkpoint = from_pretrained(make_folder(tmp_path / "jat"))
    agent = Agent(checkpoint, [task_named("metaworld-reach")])
    agent.reset([0], [5], [])
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 39)).astype(np.float32)
    rewards = np.array([0.0, 1.5, -0.5], np.float32)
    actions = [agent.act([0], Observations(values[t : t + 1], None, rewards[t : t + 1]))[0] for t in range(3)]
    batch = StepBatch(
        CONTINUOUS,
        torch.from_numpy(values)[None],
        torch.from_numpy(rewards)[None],
        torch.from_numpy(np.stack(actions))[None],
        torch.ones(1, 3, dtype=torch.bool),
        torch.zeros(1, dtype=torch.int64),
    )
    with torch.no_grad():
        predicted, _ = make_model()(batch)
    np.testing.assert_allclose(np.stack(actions), predicted[0, :, :4].numpy().clip(-1, 1), atol=1e-5)


def test_its_tasks_contexts_and_text_are_those_of_the_released_model(tmp_path: Path) -> None:
    config = from_pretrained(make_folder(tmp_path / "jat")).config
    domains = {name.split("-")[0] for name in config.tasks}
    assert domains == {"atari", "babyai", "metaworld", "mujoco"}
    assert "mujoco-humanoid" not in config.tasks  # 377 numbers do not fit 41
    assert config.text_tokens == 4
    assert not config.text_boundaries
    full = read_model_config(FULL_SIZE, "here")
    assert full == ModelConfig()


def test_contexts_are_128_steps_and_16_in_atari(tmp_path: Path) -> None:
    def widen(state: dict[str, torch.Tensor]) -> None:
        state["transformer.wpe.weight"] = torch.zeros(512, 50)

    folder = make_folder(tmp_path / "jat", CONFIG | {"max_position_embeddings": 512}, widen)
    config = from_pretrained(folder).config
    assert (config.context_steps, config.contexts) == (128, {"atari": 16})


def test_missions_are_padded_with_the_end_of_text_as_in_jat(tmp_path: Path) -> None:
    tokenizer = from_pretrained(make_folder(tmp_path / "jat")).tokenizer
    end = tokenizer.token_to_id("<|endoftext|>")
    assert pad_id(tokenizer) == end > 255
    assert encode(tokenizer, ["go to"], 64)[0, -60:].tolist() == [end] * 60


@pytest.mark.parametrize("kept", ["single_discrete_encoder.weight", "multi_discrete_encoder.0.weight"])
def test_the_shared_embedding_may_have_any_of_its_names(tmp_path: Path, kept: str) -> None:
    def rename(state: dict[str, torch.Tensor]) -> None:
        state[kept] = state.pop("transformer.wte.weight")

    model = from_pretrained(make_folder(tmp_path / "jat", change=rename)).model
    for name, value in make_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_all_three_names_and_stored_constants_and_half_precision_are_read(tmp_path: Path) -> None:
    def add(state: dict[str, torch.Tensor]) -> None:
        for name in list(state):
            state[name] = state[name].half()
        for name in ("single_discrete_encoder.weight", "multi_discrete_encoder.0.weight"):
            state[name] = state["transformer.wte.weight"].clone()
        state["transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.bool)
        state["transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)

    model = from_pretrained(make_folder(tmp_path / "jat", change=add)).model
    for name, value in make_model().state_dict().items():
        assert model.state_dict()[name].dtype == torch.float32
        assert torch.equal(model.state_dict()[name], value.half().float()), name


def test_vocab_and_merges_stand_in_for_a_tokenizer_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "jat")
    original = from_pretrained(folder).tokenizer
    original.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["<|endoftext|>"] = original.token_to_id("<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer.json").unlink()
    rebuilt = from_pretrained(folder).tokenizer
    text = "pick up the blue key, <|endoftext|> now"
    assert rebuilt.encode(text).ids == original.encode(text).ids
    assert pad_id(rebuilt) == pad_id(original)


def test_a_sparse_file_of_the_full_size_passes_the_comparison_of_shapes(tmp_path: Path) -> None:
    """The header of 192.7 M parameters, whose shapes are all right but for one."""
    released = json.loads((Path(__file__).parents[1] / "networks" / "jat_parameters.json").read_text())
    names = {name: shape for name, shape in released.items() if name != "multi_discrete_encoder.0.weight"}
    names["continuous_decoder.bias"] = [376]
    header, end = {}, 0
    for name, shape in names.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder = tmp_path / "jat"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(FULL_SIZE))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # takes no space on disk
    with pytest.raises(UserError) as refused:
        from_pretrained(folder)
    assert str(refused.value).endswith("describes: continuous_decoder.bias is [376], not [377]")


def test_parameters_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        del state["transformer.ln_f.bias"]
        state["extra"] = torch.zeros(2)
        state["transformer.wpe.weight"] = torch.zeros(30, 50)
        for layer in range(2):
            del state[f"transformer.h.{layer}.ln_1.bias"]
            del state[f"transformer.h.{layer}.ln_2.bias"]

    folder = make_folder(tmp_path / "jat", change=spoil)
    with pytest.raises(UserError, match=r"transformer\.ln_f\.bias is missing.* and 2 more"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "has no tasks and no model_type jat"),
        ({"activation_function": "gelu"}, "has activation_function gelu; only gelu_new can be loaded"),
        ({"intermediate_size": 64}, "has intermediate_size 64; only 200 can be loaded"),
        ({"attention_layers": ["global", "global"]}, r"attention_layers \['global', 'global'\]; only"),
        ({"layer_norm_epsilon": 1e-6}, "has layer_norm_epsilon 1e-06"),
    ],
)
def test_another_kind_of_model_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_pretrained(make_folder(tmp_path / "jat", CONFIG | changes))


def test_a_config_without_its_sizes_is_refused(tmp_path: Path) -> None:
    short = {key: value for key, value in CONFIG.items() if key not in ("hidden_size", "image_size")}
    with pytest.raises(UserError, match=r"config\.json lacks hidden_size, image_size"):
        from_pretrained(make_folder(tmp_path / "jat", short))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"is not a checkpoint: it has no config\.json"),
        ("model.safetensors", r"has no model\.safetensors \(a pytorch_model\.bin is not read"),
        ("tokenizer.json", r"has no tokenizer\.json, nor vocab\.json and merges\.txt"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    folder = make_folder(tmp_path / "jat")
    (folder / name).unlink()
    with pytest.raises(UserError, match=message):
        from_pretrained(folder)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "jat")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        from_pretrained(folder)


def test_what_is_neither_a_folder_nor_a_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a folder nor a repository owner/name"):
        from_pretrained(tmp_path / "nothing" / "here")


def test_without_network_the_repository_is_named() -> None:
    with pytest.raises(UserError, match=r"jat-project/jat cannot be downloaded from the Hugging Face Hub"):
        from_pretrained("jat-project/jat")
