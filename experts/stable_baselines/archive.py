"""Convert Stable-Baselines3 and sb3-contrib models, in memory or from a file (``saved_model.py``), to networks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from experts.network import NetworkSpec, build_network
from experts.spec import dims
from experts.stable_baselines.layers import Module, fold_normalisations, module_under, stack_of, with_bias
from experts.stable_baselines.saved_model import DATA, EXPECTED, About, about_settings, as_dict, read_model
from experts.stable_baselines.vec_normalize import Statistics, read_statistics
from pipeline.envs.task import CONTINUOUS, DISCRETE, Task
from pipeline.errors import UserError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecNormalize

# Algorithms by the output of their actor: a Gaussian, a squashed Gaussian, or a squashed deterministic action.
ON_POLICY = ("ppo", "trpo", "a2c")
SOFT = ("sac", "tqc", "crossq")
DETERMINISTIC = ("td3", "ddpg")
# Q-learning: the action with the largest value, or mean of the quantiles of the return.
VALUE = ("dqn", "qrdqn")
# Random search: a network without a distribution, with or without biases and a final tanh.
SEARCHED = ("ars",)
ALL = ON_POLICY + SOFT + DETERMINISTIC + VALUE + SEARCHED

# The module of a policy's class identifies the algorithm; PPO, TRPO and A2C share one.
_SHARED = "stable_baselines3.common.policies"
_POLICIES = {
    "stable_baselines3.sac.policies": "sac",
    "stable_baselines3.td3.policies": "td3",
    "sb3_contrib.tqc.policies": "tqc",
    "sb3_contrib.crossq.policies": "crossq",
    "sb3_contrib.ars.policies": "ars",
    "stable_baselines3.dqn.policies": "dqn",
    "sb3_contrib.qrdqn.policies": "qrdqn",
}

# Activation classes by the last part of their names, in memory and in files; NormReLU is defined by this project.
_ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "ELU": "elu", "NormReLU": "norm_relu"}

# sb3-contrib's default for CrossQ.
_BATCH_NORM_EPSILON = 0.001

# Log standard deviation for policies without a distribution: almost no noise.
_LOG_STD_OF_NONE = -20.0


@dataclass(frozen=True)
class _Description:
    """Settings of a model that its state dict does not contain.

    Attributes:
        algorithm: a name from one of the groups above.
        policy_kwargs: arguments that differ from the policy's defaults; classes as objects or as text.
        use_sde: whether the model used gSDE (generalised state-dependent exploration).
        origin: name of the source in messages.
        is_linear: whether an ARS policy is the linear one, whose defaults differ.
        choices: sizes of the parts of a MultiDiscrete action space; empty for other spaces.
    """

    algorithm: str
    policy_kwargs: Mapping[str, Any]
    use_sde: bool
    origin: str
    is_linear: bool = False
    choices: tuple[int, ...] = ()


def load_archive(
    path: Path, task: Task, sampled: bool = False, statistics: Path | None = None
) -> tuple[str, NetworkSpec, dict[str, Tensor]]:
    """Load the policy from a file written by ``model.save``.

    Args:
        path: the zip.
        task: task it acts in; its action bounds must equal those of the training.
        sampled: sample actions instead of taking the mode.
        statistics: file written by ``VecNormalize.save``, if observations were normalised.

    Returns:
        The algorithm (``ppo``, ``sac``, ...), the spec, and the arrays with the names of ``PolicyNetwork``.

    Raises:
        UserError: the file is missing, truncated or of another kind, the algorithm or policy is not supported, or
            sizes or bounds differ from the task's.
    """
    data, state = read_model(path)
    algorithm = _algorithm(data, path)
    settings = data.get("policy_kwargs")
    if not isinstance(settings, dict | None):
        raise UserError(
            f"{path}: policy_kwargs in its {DATA} is a {type(settings).__name__}, expected a dict; {EXPECTED}"
        )
    kwargs = settings or {}
    is_linear = "ARSLinearPolicy" in str(as_dict(data.get("policy_class")).get("__init__"))
    choices = tuple(int(n) for n in _numbers(as_dict(data.get("action_space")).get("nvec")))
    use_sde = bool(data.get("use_sde") or kwargs.get("use_sde"))
    model = _Description(algorithm, kwargs, use_sde, str(path), is_linear, choices)
    _check_spaces(model, data, task)
    found = read_statistics(statistics) if statistics else None
    _check_normalised(about_settings(data), path, statistics, found)
    spec, arrays = _convert(model, state, found, task, sampled)
    return algorithm, spec, arrays


def _check_normalised(known: About, path: Path, statistics: Path | None, found: Statistics | None) -> None:
    """Raise if the observation statistics of the training are missing, or if they belong to another model."""
    if known.was_normalised and found is None:
        other = f"; {statistics.name} normalises only rewards, so it belongs to another" if statistics else ""
        raise UserError(
            f"{path} was trained on normalised observations (VecNormalize), as its {DATA} says, but comes without "
            f"their statistics{other}; put its vec_normalize.pkl beside it"
        )
    if known.was_normalised is False and found is not None:
        raise UserError(
            f"{path} was trained on observations as they are, as its {DATA} says, so {found.origin} belongs to "
            "another model; put the model into a folder of its own"
        )


def export_model(
    model: BaseAlgorithm, task: Task, vec_normalize: VecNormalize | None = None
) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Convert a model in memory to its greedy policy.

    Args:
        model: a model of any algorithm in the groups above, with an MLP policy on vector observations.
        task: task it acts in; defines the action bounds.
        vec_normalize: the wrapper that normalised its observations.

    Returns:
        The spec, and the arrays with the names of ``PolicyNetwork``: copies on the CPU, float32.

    Raises:
        UserError: a ``NetworkSpec`` cannot represent the policy, or its sizes differ from the task's.
    """
    algorithm = type(model).__name__
    if algorithm.lower() not in ALL:
        raise UserError(f"{algorithm} models cannot be exported; {_allowed()}")
    is_linear = type(model.policy).__name__ == "ARSLinearPolicy"
    origin = f"the {algorithm} model"
    description = _Description(algorithm.lower(), model.policy_kwargs, model.use_sde, origin, is_linear)
    statistics = None
    if vec_normalize is not None and vec_normalize.norm_obs:
        rms: Any = vec_normalize.obs_rms
        if isinstance(rms, dict):
            raise UserError(f"{description.origin} normalises a dict of observations; give it one vector")
        statistics = Statistics(rms.mean, rms.var, vec_normalize.epsilon, vec_normalize.clip_obs, "its VecNormalize")
    return _convert(description, model.policy.state_dict(), statistics, task, sampled=False)


def _algorithm(data: Mapping[str, Any], path: Path) -> str:
    policy = data.get("policy_class")
    module = str(policy.get("__module__") if isinstance(policy, dict) else policy)[:100]
    if module == _SHARED:
        return "ppo" if "n_epochs" in data else "trpo" if "cg_max_steps" in data else "a2c"
    if module not in _POLICIES:
        raise UserError(f"{path} has a policy of {module}, which cannot be read; {_allowed()}, with their MlpPolicy")
    return _POLICIES[module]


def _check_spaces(model: _Description, data: Mapping[str, Any], task: Task) -> None:
    """Raise if the saved spaces, as far as they are readable, differ from the task's."""
    observations, actions = data.get("observation_space"), data.get("action_space")
    if isinstance(observations, dict) and "Dict" in str(observations.get(":type:")):
        raise UserError(f"{model.origin} takes a dict of observations; give one trained on a vector")
    if not isinstance(actions, dict) or task.action.kind != "continuous":
        return
    for name, wanted in (("low", task.action.low), ("high", task.action.high)):
        found = _numbers(actions.get(name))
        if found and not np.allclose(found, wanted, atol=1e-6):
            raise UserError(
                f"{model.origin} was trained with actions whose {name} is {str(actions[name])[:100]}; that of "
                f"{task.name} ({task.env_id}) is {wanted:g}: give an expert of {task.env_id}"
            )


def _numbers(text: Any) -> list[float]:
    """Parse the numbers of a printed array; an empty list if it cannot be parsed."""
    try:
        return [float(word) for word in str(text).strip("[]").split()]
    except ValueError:
        return []


def _convert(
    model: _Description, state: Mapping[str, Tensor], statistics: Statistics | None, task: Task, sampled: bool
) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Convert a state dict to a spec and arrays."""
    _check_supported(model, state, task, sampled)
    try:
        hidden, head, log_std = _layers(model, state)
        if task.action.kind == "discrete":
            head = _one_head(head, model, task)
        arrays = fold_normalisations(hidden, head, model.policy_kwargs.get("batch_norm_eps", _BATCH_NORM_EPSILON))
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{model.origin}: its weights are not those of {model.algorithm}'s MlpPolicy ({error}); only the policies "
            "that come with the libraries can be read"
        ) from error
    widths = [len(arrays[name]) for name in arrays if name.startswith("hidden.") and name.endswith(".bias")]
    outputs, last = arrays["head.weight"].shape
    first = arrays["hidden.0.weight"].shape[1] if widths else last
    if log_std is not None:
        arrays["log_std"] = log_std
    is_discrete = task.action.kind == "discrete"
    spec = NetworkSpec(
        observation_shape=(first,),
        hidden=tuple(widths),
        activation=_activation(model),
        head="categorical" if is_discrete else "squashed" if _is_squashed(model) else "gaussian",
        action_size=outputs // 2 if log_std is None and not is_discrete else outputs,
        action_low=task.action.low,
        action_high=task.action.high,
        state_dependent_std=log_std is None and not is_discrete,
        sampled=sampled,
        one_hot=task.observation_values if task.observation == DISCRETE else (),
    )
    if statistics is not None and statistics.mean.shape != (first,):
        raise UserError(
            f"{model.origin} sees {first} numbers a step, {statistics.origin} has statistics of "
            f"{dims(statistics.mean.shape)}: they are not of one training; give the statistics that belong to it"
        )
    if statistics is not None:
        spec = dataclasses.replace(spec, normalise=True, epsilon=statistics.epsilon, clip=statistics.clip)
        arrays["mean"], arrays["var"] = torch.as_tensor(statistics.mean), torch.as_tensor(statistics.var)
    spec.check_fits(task, model.origin)
    arrays = {name: array.detach().to("cpu", torch.float32, copy=True) for name, array in arrays.items()}
    build_network(spec, arrays, model.origin)  # raises if shapes are inconsistent or values are not finite
    return spec, arrays


def _check_supported(model: _Description, state: Mapping[str, Tensor], task: Task, sampled: bool) -> None:
    """Raise for models that would act differently as a ``NetworkSpec``."""
    is_readable = task.observation == CONTINUOUS or (task.observation == DISCRETE and task.observation_values)
    if not is_readable or task.has_text:
        raise UserError(
            f"{model.origin}: policies of Stable-Baselines3 are read for vectors of numbers or integers; {task.name} "
            "has others, give it a Sample Factory checkpoint, or a function of your own (py:module:name)"
        )
    kinds = {"discrete": ON_POLICY + VALUE, "continuous": tuple(name for name in ALL if name not in VALUE)}
    if model.algorithm not in kinds[task.action.kind]:
        raise UserError(
            f"{model.origin} is of {model.algorithm}, whose actions are not {task.action.kind}, as those of "
            f"{task.name} are; allowed: {', '.join(kinds[task.action.kind])}"
        )
    extractor = str(model.policy_kwargs.get("features_extractor_class", "FlattenExtractor"))
    weights = [name for name in state if re.match(r"(actor\.|pi_)?features_extractor\.", name)]
    if "FlattenExtractor" not in extractor or weights:
        shown = (", ".join(weights) or extractor)[:100]
        raise UserError(f"{model.origin} has a features extractor ({shown}); give a plain MlpPolicy")
    if model.use_sde and (model.algorithm not in ON_POLICY or model.policy_kwargs.get("squash_output")):
        raise UserError(f"{model.origin} uses gSDE, which limits the means of its actions; give one without use_sde")
    if sampled and (model.use_sde or model.algorithm in DETERMINISTIC + SEARCHED + VALUE):
        noise = "draws its noise with gSDE" if model.use_sde else "is deterministic"
        raise UserError(f"{model.origin} {noise}, so its actions cannot be sampled; take its greedy actions")


def _activation(model: _Description) -> str:
    default = "Tanh" if model.algorithm in ON_POLICY else "ReLU"
    found = str(model.policy_kwargs.get("activation_fn", default))
    name = found.removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise UserError(f"{model.origin} has the activation function {found[:100]}; allowed: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _layers(model: _Description, state: Mapping[str, Tensor]) -> tuple[list[Module], Module, Tensor | None]:
    """Return the modules before the head in order, the head, and the log standard deviations if they are an array."""
    if model.algorithm in ON_POLICY:
        hidden = stack_of(state, "mlp_extractor.shared_net") + stack_of(state, "mlp_extractor.policy_net")
        head = module_under(state, "action_net")
        if "log_std" not in state:  # discrete actions
            return hidden, head, None
        log_std = _no_noise(head) if model.use_sde else state["log_std"]
        return hidden, head, log_std
    if model.algorithm in VALUE:
        name = "q_net.q_net" if model.algorithm == "dqn" else "quantile_net.quantile_net"
        *hidden, head = stack_of(state, name)
        return hidden, head, None
    if model.algorithm in SEARCHED:
        *hidden, head = [with_bias(layer) for layer in stack_of(state, "action_net")]
        return hidden, head, _no_noise(head)
    if model.algorithm in DETERMINISTIC:
        *hidden, head = stack_of(state, "actor.mu")
        return hidden, head, _no_noise(head)
    means, log_stds = module_under(state, "actor.mu"), module_under(state, "actor.log_std")
    head = {name: torch.cat([means[name], log_stds[name]]) for name in ("weight", "bias")}
    return stack_of(state, "actor.latent_pi"), head, None


def _one_head(head: Module, model: _Description, task: Task) -> Module:
    """Convert a head of discrete actions to one output per choice of the task.

    The mean of an action's quantiles is linear in them. The logit of a combination of choices is the sum of the logits
    of its parts, which a MultiDiscrete policy draws independently.
    """
    if model.algorithm == "qrdqn":  # outputs are (quantiles, actions)
        return {name: array.unflatten(0, (-1, task.action.size)).mean(dim=0) for name, array in head.items()}
    if len(model.choices) < 2:
        return head
    parts = [
        torch.as_tensor(part + sum(model.choices[:place]))
        for place, part in enumerate(np.indices(model.choices).reshape(len(model.choices), -1))
    ]
    return {name: sum((array[rows] for rows in parts), torch.zeros(())) for name, array in head.items()}


def _is_squashed(model: _Description) -> bool:
    """Whether actions are a tanh scaled to the bounds."""
    if model.algorithm in SEARCHED:
        return bool(model.policy_kwargs.get("squash_output", not model.is_linear))
    return model.algorithm not in ON_POLICY


def _no_noise(head: Module) -> Tensor:
    return torch.full((len(head["bias"]),), _LOG_STD_OF_NONE)


def _allowed() -> str:
    return f"allowed: {', '.join(ALL)}"
