"""Convert Sample Factory's checkpoints to stored networks, without importing Sample Factory.

A folder contains ``config.json`` (``cfg.json`` before Sample Factory 2.0.2) and
``checkpoint_p0/{best,checkpoint}_<minibatches>_<environment steps>[_<metric>_<value>].pth``. The files are pickles, but
only tensors, numbers and strings are loaded, so an untrusted file cannot execute code.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.network import ACTIVATIONS, CONVOLUTIONS, NetworkSpec, build_network
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.foreign import MIB, check_file

if TYPE_CHECKING:
    from torch import Tensor

CONFIGS = ("config.json", "cfg.json")
CHECKPOINTS = "checkpoint_p0"
NAME = re.compile(r"(best|checkpoint)_(\d+)_(\d+)(?:_\w+?_(-?\d+(?:\.\d+)?))?\.pth")
# Sample Factory clips the standard deviation of continuous actions to this range.
STD_MIN, STD_MAX = 1e-4, 1e4
MAX_CONFIG = 4 * MIB


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint with the values in its file name.

    Attributes:
        kind: ``best`` or ``checkpoint``.
        minibatches: training steps so far.
        steps: environment steps so far; emulator frames for Atari.
        value: mean return of recent episodes; only in the names of best checkpoints.
    """

    path: Path
    kind: str
    minibatches: int
    steps: int
    value: float | None


def find_checkpoints(folder: Path) -> list[CheckpointFile]:
    """Return the checkpoints of a Sample Factory folder, oldest first."""
    found = []
    for path in (folder / CHECKPOINTS).glob("*.pth"):
        if match := NAME.fullmatch(path.name):
            kind, minibatches, steps, value = match.groups()
            found.append(CheckpointFile(path, kind, int(minibatches), int(steps), float(value) if value else None))
    return sorted(found, key=lambda file: (file.minibatches, file.steps))


def newest_checkpoint(folder: Path) -> CheckpointFile | None:
    """Return the checkpoint that a training resumes from; None if there is none."""
    return next((file for file in reversed(find_checkpoints(folder)) if file.kind == "checkpoint"), None)


def choose_checkpoint(folder: Path) -> CheckpointFile:
    """Return the best checkpoint by mean return, or the newest if none is marked best.

    Raises:
        UserError: there is no checkpoint.
    """
    files = find_checkpoints(folder)
    if not files:
        raise UserError(
            f"{folder} holds no Sample Factory checkpoint: expected {CHECKPOINTS}/best_*.pth or "
            f"{CHECKPOINTS}/checkpoint_*.pth; give the folder that has {CHECKPOINTS}/ and {CONFIGS[0]}"
        )
    best = [file for file in files if file.kind == "best"]
    return max(best, key=lambda file: -math.inf if file.value is None else file.value) if best else files[-1]


def numpy_scalars() -> list[Any]:
    """Return the globals that ``torch.load(weights_only=True)`` must allow for ``best_performance``, a numpy scalar.

    The function has different names in numpy 1 and numpy 2; both are allowed.
    """
    import numpy as np

    scalar: Any = np._core.multiarray.scalar  # type: ignore[attr-defined]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    types = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32")]
    return [*((scalar, name) for name in names), np.dtype, *types]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file; tensors are on the CPU.

    Raises:
        UserError: the file is missing, damaged, or contains anything but tensors, numbers and strings.
    """
    from experts.tensors import NotTensorsError, check_arrays, load_tensors

    hint = f"remove {path.name} to use the checkpoint before it, or restore it"
    try:
        content = load_tensors(path, str(path), numpy_scalars())
    except NotTensorsError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise UserError(
                f"{path} is damaged, or holds more than tensors and numbers, which is refused because loading it could "
                f"run code; expected a checkpoint of Sample Factory; {hint} ({error})"
            ) from error
        raise UserError(
            f"{path} cannot be read as a checkpoint of Sample Factory: it is damaged or was cut off; {hint} ({error})"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        raise UserError(f"{path} is no checkpoint of Sample Factory: expected a dict with the key 'model'; {hint}")
    check_arrays(content["model"], f"{path}: its model")
    return content


def load_checkpoint(folder: Path, task: Task, sampled: bool = False) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Load the expert of a Sample Factory folder: the best checkpoint, or the newest if none is marked best.

    Args:
        folder: folder with ``config.json`` or ``cfg.json``, and ``checkpoint_p0/``.
        task: task it was trained for; sizes are checked.
        sampled: sample actions, as in training, instead of acting greedily.

    Returns:
        The spec and float32 arrays with the names of ``experts.network.PolicyNetwork``.

    Raises:
        UserError: a file is missing, damaged or of another kind, the network has unsupported parts (recurrent or
            residual), or its sizes differ from the task's.
    """
    config = _read_config(folder)
    file = choose_checkpoint(folder)
    model: Mapping[str, Tensor] = read_checkpoint(file.path)["model"]
    return _Reader(config, model, file.path).network(task, sampled)


@dataclass(frozen=True)
class _Config:
    """The configuration of a checkpoint's training."""

    path: Path
    values: Mapping[str, Any]

    def __call__(self, key: str, *kinds: type) -> Any:
        """Return the value of ``key``; raise unless it has one of the types ``kinds``."""
        expected = " or ".join(kind.__name__ for kind in kinds)
        if key not in self.values:
            raise UserError(f"{self.path} has no {key!r} ({expected}); it is not a configuration of Sample Factory 2")
        value = self.values[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"{self.path}: {key!r} is {repr(value)[:60]}, expected {expected}; restore the file")
        if isinstance(value, int | float) and not abs(value) < 1e30:  # also true for NaN
            raise UserError(f"{self.path}: {key!r} is {value!r}, expected a smaller number; restore the file")
        return value


def _read_config(folder: Path) -> _Config:
    path = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} is not a folder of Sample Factory: it has neither {CONFIGS[0]} nor {CONFIGS[1]}; "
            f"give the folder that has one of them and {CHECKPOINTS}/"
        )
    check_file(path, MAX_CONFIG)
    try:
        values = read_json(path)
    except ValueError as error:  # also text that is not UTF-8
        raise UserError(f"{path} is not JSON ({error}); restore the file written by Sample Factory") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected an object; restore the file")
    return _Config(path, values)


@dataclass(frozen=True)
class _Reader:
    """Maps Sample Factory's array names to the parts of a policy."""

    config: _Config
    model: Mapping[str, Tensor]
    path: Path

    def network(self, task: Task, sampled: bool) -> tuple[NetworkSpec, dict[str, Tensor]]:
        is_image, is_continuous = len(task.observation_shape) == 3, task.action.kind == "continuous"
        encoder = self._encoder(is_image)
        shared = self.config("actor_critic_share_weights", bool)
        prefix = "" if shared else "actor_"
        encoders = f"{prefix}encoder.encoders.obs"
        arrays: dict[str, Tensor] = {}
        convolutions = self._layers(f"{encoders}.enc.conv_head", len(CONVOLUTIONS[encoder]))
        hidden = [
            *(
                self._layers(f"{encoders}.enc.mlp_layers", len(self.config("encoder_conv_mlp_layers", list)))
                if is_image
                else self._layers(f"{encoders}.mlp_head", len(self.config("encoder_mlp_layers", list)))
            ),
            *self._layers(f"{prefix}decoder.mlp", len(self.config("decoder_mlp_layers", list))),
        ]
        for kind, layers in (("conv", convolutions), ("hidden", hidden)):
            for index, (weight, bias) in enumerate(layers):
                arrays |= {f"{kind}.{index}.weight": weight, f"{kind}.{index}.bias": bias}
        head = "action_parameterization.distribution_linear"
        arrays |= {f"head.{part}": self._array(f"{head}.{part}") for part in ("weight", "bias")}
        adaptive = is_continuous and self.config("adaptive_stddev", bool)
        if is_continuous and not adaptive:
            std = self._array("action_parameterization.learned_stddev")
            arrays["log_std"] = std.clamp(math.log(STD_MIN), math.log(STD_MAX))
        normalise = self._is_normalised()
        if normalise:
            statistics = "obs_normalizer.running_mean_std.running_mean_std.obs"
            arrays |= {part: self._array(f"{statistics}.running_{part}") for part in ("mean", "var")}
        spec = NetworkSpec(
            observation_shape=self._observation_shape(task, normalise, arrays),
            encoder=encoder,
            hidden=tuple(len(bias) for _, bias in hidden),
            activation=self._activation(),
            head="gaussian" if is_continuous else "categorical",
            action_size=len(arrays["head.bias"]) // (2 if adaptive else 1),
            action_low=task.action.low,
            action_high=task.action.high,
            normalise=normalise,
            subtract=float(self.config("obs_subtract_mean", int, float)),
            scale=float(self.config("obs_scale", int, float)),
            state_dependent_std=adaptive,
            # Sample Factory ignores the limit if the standard deviation depends on the state.
            tanh_scale=float(self.config("continuous_tanh_scale", int, float)) if "log_std" in arrays else 0.0,
            sees_goal=task.hidden_goal is not None and self._sees_goal(arrays),
            sampled=sampled,
        )
        spec.check_fits(task, str(self.path))
        build_network(spec, arrays, str(self.path))  # checks names and shapes
        return spec, {name: array.float() for name, array in arrays.items()}

    def _encoder(self, is_image: bool) -> str:
        if self.config("use_rnn", bool):
            raise UserError(
                f"{self.config.path}: recurrent policies (use_rnn) are not supported; give one trained with "
                f"--use_rnn=False"
            )
        if not is_image:
            return "mlp"
        name: str = self.config("encoder_conv_architecture", str)
        if name not in CONVOLUTIONS:
            allowed = ", ".join(name for name, layers in CONVOLUTIONS.items() if layers)
            raise UserError(f"{self.config.path}: encoder {name[:60]!r} is not supported; allowed: {allowed}")
        return name

    def _activation(self) -> str:
        name: str = self.config("nonlinearity", str)
        if name not in ACTIVATIONS:
            raise UserError(
                f"{self.config.path}: nonlinearity {name[:60]!r} is not supported; allowed: {', '.join(ACTIVATIONS)}"
            )
        return name

    def _is_normalised(self) -> bool:
        keys = self.config.values.get("normalize_input_keys")
        if keys is not None and not isinstance(keys, list):
            raise UserError(f"{self.config.path}: 'normalize_input_keys' is no list; restore the file")
        return bool(self.config("normalize_input", bool)) and (keys is None or "obs" in keys)

    def _observation_shape(self, task: Task, normalise: bool, arrays: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Derive the input shape of the network from its arrays."""
        if normalise:
            return tuple(arrays["mean"].shape)
        if "conv.0.weight" in arrays:
            return (arrays["conv.0.weight"].shape[1], *task.observation_shape[:2])
        first = arrays.get("hidden.0.weight", arrays["head.weight"])
        return (first.shape[1],)

    def _sees_goal(self, arrays: Mapping[str, Tensor]) -> bool:
        """Whether observations contained Meta-World's goal: not if the last three entries were always zero."""
        if "mean" in arrays:
            return bool(arrays["mean"][-3:].any())
        return bool(self.config.values.get("shows_goal", True))

    def _layers(self, prefix: str, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return weights and biases of a stack of layers; odd indices are activations."""
        names = [f"{prefix}.{2 * index}" for index in range(count)]
        return [(self._array(f"{name}.weight"), self._array(f"{name}.bias")) for name in names]

    def _array(self, name: str) -> Tensor:
        if name not in self.model:
            raise UserError(
                f"{self.path} has no array {name!r}, which {self.config.path} calls for; the two are not of the same "
                f"training, or the policy is not one of Sample Factory's standard ones"
            )
        array = self.model[name]
        if (name.endswith(".weight") and array.dim() < 2) or (name.endswith((".bias", "stddev")) and array.dim() != 1):
            raise UserError(f"{self.path}: {name} has shape {tuple(array.shape)}, which no layer has; it is damaged")
        return array
