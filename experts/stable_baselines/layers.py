"""The layers of a saved network as arrays: finds them by their names, and folds batch normalisations into them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Module = dict[str, Tensor]  # parameters by name


def stack_of(state: Mapping[str, Tensor], prefix: str) -> list[Module]:
    """Return the modules of a ``Sequential`` that have parameters, in order."""
    found = {int(match[1]) for name in state if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
    return [module_under(state, f"{prefix}.{index}") for index in sorted(found)]


def module_under(state: Mapping[str, Tensor], prefix: str) -> Module:
    """Return the parameters whose names begin with ``prefix``, without it."""
    return {name[len(prefix) + 1 :]: array for name, array in state.items() if name.startswith(f"{prefix}.")}


def fold_normalisations(hidden: Sequence[Module], head: Module, epsilon: float) -> Module:
    """Fold CrossQ's batch normalisations into the linear layers that follow them; return only linear layers.

    In evaluation mode a batch normalisation is ``scale * (x - ra_mean) / sqrt(ra_var + epsilon) + bias``.
    """
    linear: list[tuple[Tensor, Tensor]] = []
    scale, shift = torch.ones(()).double(), torch.zeros(()).double()
    for module in (*hidden, head):
        names, values = set(module), {name: array.double() for name, array in module.items()}
        if names == {"ra_mean", "ra_var", "scale", "bias", "steps"}:
            factor = values["scale"] / torch.sqrt(values["ra_var"] + epsilon)
            scale, shift = scale * factor, (shift - values["ra_mean"]) * factor + values["bias"]
        elif names == {"weight", "bias"} and module["weight"].dim() == 2:
            weight, bias = values["weight"], values["bias"]
            linear.append((weight * scale, bias + weight @ shift.expand(weight.shape[1])))
            scale, shift = torch.ones(()).double(), torch.zeros(()).double()
        else:
            raise ValueError(f"a layer with {', '.join(sorted(names)) or 'nothing'}")
    names_in_order = [f"hidden.{i}" for i in range(len(linear) - 1)] + ["head"]
    arrays: Module = {}
    for name, (weight, bias) in zip(names_in_order, linear, strict=True):
        arrays |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return arrays


def with_bias(layer: Module) -> Module:
    """Return a linear layer with a bias, of zeros if it has none."""
    return {"bias": torch.zeros(len(layer["weight"])), **layer}
