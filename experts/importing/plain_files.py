"""Load policies that are plain arrays in a file: the experts of cs285's homework, and linear policies.

Neither format names the task it was trained on, so only sizes can be checked. No code in the files is executed.

- cs285 (Berkeley; before 2018 CS 294-112): a pickle of ``{"nonlin_type": ..., "GaussianPolicy": ...}`` as
  openai/imitation saved it. Its ``load_policy.py`` computes ``(x - mean) / (std + 1e-6)``, the hidden layers in the
  order of their names, each ``nonlin(x @ W + b)``, and the output layer.
- linear: an ``.npz`` with the weights ``(actions, observations)``, alone or with mean and standard deviation of the
  observations, as three arrays or in one object array, as published by Augmented Random Search
  (``lin_policy_plus.npz``). That code acts by ``W @ ((x - mean) / (std + 1e-8))``; an infinite standard deviation
  excludes an entry of the observation.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.importing.pickles import DAMAGED, MOST_BYTES, array_of, loads, objects_of, read_pickle
from experts.network import NetworkSpec, build_network
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.foreign import check_file, check_zip

_HOMEWORK = "an expert of cs285's homework"
_LINEAR = "a linear policy: weights, or weights, mean and deviation"
_NONLINEARITIES = {"lrelu": "leaky_relu", "tanh": "tanh", "relu": "relu"}

_Layer = tuple[np.ndarray, np.ndarray]


def load_homework(path: Path, task: Task, sampled: bool = False) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Load the policy from a pickle of cs285's homework.

    Raises:
        UserError: the file is another pickle or damaged, or its sizes differ from the task's.
    """
    root = read_pickle(path, _HOMEWORK)
    try:
        activation = _NONLINEARITIES[root["nonlin_type"]]
        policy = root["GaussianPolicy"]
        moments = policy["obsnorm"]["Standardizer"]
        mean = array_of(moments["mean_1_D"]).ravel()
        deviation = np.sqrt(np.maximum(0, array_of(moments["meansq_1_D"]).ravel() - mean**2)) + 1e-6
        hidden = policy["hidden"]["FeedforwardNet"]
        layers = [_affine(hidden[name]) for name in sorted(hidden)] + [_affine(policy["out"])]
        log_std = array_of(policy["logstdevs_1_Da"]).ravel()
    except DAMAGED as error:
        raise UserError(f"{path} is not {_HOMEWORK} ({type(error).__name__}: {str(error)[:200]})") from error
    return _network(path, task, layers, (mean, deviation), activation, log_std, sampled)


def load_linear(path: Path, task: Task) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Load the linear policy from an ``.npz``.

    Raises:
        UserError: the file has other content or is damaged, or its sizes differ from the task's.
    """
    try:
        arrays = _arrays_in(path)
        weights, *moments = arrays
        if len(moments) not in (0, 2) or weights.ndim != 2:
            raise ValueError(f"{len(arrays)} arrays, the first of {weights.ndim} dimensions")
    except (*DAMAGED, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} is not {_LINEAR} ({str(error)[:200]})") from error
    normalisation = (moments[0].ravel(), moments[1].ravel() + 1e-8) if moments else None
    if normalisation is not None:
        is_left_out = np.isposinf(normalisation[1])
        if is_left_out.shape == weights.shape[1:]:
            weights = np.where(is_left_out, 0.0, weights)
            normalisation = (normalisation[0], np.where(is_left_out, 1.0, normalisation[1]))
    layer = (weights.T, np.zeros(len(weights)))
    return _network(path, task, [layer], normalisation, "tanh", None, sampled=False)


def _affine(module: Mapping[str, Any]) -> _Layer:
    """Return weight ``(in, out)`` and bias ``(out,)`` of a layer."""
    layer = module["AffineLayer"]
    weight, bias = array_of(layer["W"]), array_of(layer["b"]).ravel()
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
        raise ValueError(f"a layer of {weight.shape} and {bias.shape}")
    return weight, bias


def _arrays_in(path: Path) -> list[np.ndarray]:
    """Read the arrays of an ``.npz``, sorted by name."""
    check_file(path, MOST_BYTES)
    check_zip(path, str(path), MOST_BYTES)
    with zipfile.ZipFile(path) as archive:
        members = sorted(name for name in archive.namelist() if name.endswith(".npy"))
        found = [_read_npy(archive.read(name)) for name in members]
    if len(found) == 1:
        return list(found[0]) if isinstance(found[0], list) else [found[0]]
    if not found or any(isinstance(array, list) for array in found):
        raise ValueError(f"{len(found)} arrays, some of objects")
    return [array for array in found if isinstance(array, np.ndarray)]


def _read_npy(raw: bytes) -> np.ndarray | list[np.ndarray]:
    """Read a float array, or the float arrays in an object array, as float64.

    ``numpy.load`` is not used, because it allocates whatever size the header claims.
    """
    file = io.BytesIO(raw)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = read[np.lib.format.read_magic(file)](file)
    content = raw[file.tell() :]
    if dtype.hasobject:
        return [array_of(value) for value in objects_of(loads(content))]
    if dtype.kind != "f":
        raise ValueError(f"an array of {dtype}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C").astype(np.float64)


def _network(
    path: Path,
    task: Task,
    layers: Sequence[_Layer],
    normalisation: tuple[np.ndarray, np.ndarray] | None,
    activation: str,
    log_std: np.ndarray | None,
    sampled: bool,
) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Make a ``NetworkSpec`` and its arrays, checked against the task; without ``log_std`` there is almost no noise."""
    *hidden, (weight, bias) = layers
    spec = NetworkSpec(
        observation_shape=(len(layers[0][0]),),
        hidden=tuple(len(b) for _, b in hidden),
        activation=activation,
        head="gaussian",
        action_size=len(bias),
        action_low=task.action.low,
        action_high=task.action.high,
        normalise=normalisation is not None,
        epsilon=0.0,
        clip=1e10,
        sampled=sampled,
    )
    named = {"head.weight": weight.T, "head.bias": bias}
    named["log_std"] = np.full(len(bias), -20.0) if log_std is None else log_std
    for index, (w, b) in enumerate(hidden):
        named |= {f"hidden.{index}.weight": w.T, f"hidden.{index}.bias": b}
    if normalisation is not None:
        named |= {"mean": normalisation[0], "var": normalisation[1] ** 2}
    spec.check_fits(task, str(path))
    arrays = {name: torch.from_numpy(np.ascontiguousarray(array)).float() for name, array in named.items()}
    build_network(spec, arrays, str(path))
    return spec, arrays
