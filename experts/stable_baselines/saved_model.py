"""Read the zip written by Stable-Baselines3's ``model.save`` as data: settings and weights.

Its ``data`` is JSON. Objects that JSON cannot represent are pickles in base64, together with the text of each
attribute. Its ``policy.pth`` is a state dict. Only texts and tensors are read and no pickle in ``data`` is decoded, so
an untrusted file cannot execute code.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from experts.tensors import DAMAGED, NotTensorsError, check_arrays, load_tensors
from pipeline.errors import UserError
from pipeline.foreign import MIB, check_file, check_zip

# Members of the zip.
DATA, WEIGHTS = "data", "policy.pth"
# Limits of the unpacked size; a policy has a hundredth of this.
_MOST_BYTES, _MOST_DATA = 1024 * MIB, 64 * MIB

EXPECTED = "expected what model.save of Stable-Baselines3 wrote"


@dataclass(frozen=True)
class About:
    """Facts about the training of a saved model, derived from its settings.

    Attributes:
        was_normalised: whether ``VecNormalize`` normalised its observations; None if unknown.
        training: an identifier shared by all models saved by one training; None if unknown.
    """

    was_normalised: bool | None
    training: tuple[str, int | float] | None


def about(path: Path) -> About:
    """Read the facts about the training of a saved model.

    Raises:
        UserError: the file cannot be read.
    """
    return about_settings(_read_settings(path))


def about_settings(data: Mapping[str, Any]) -> About:
    """Like ``about``, for settings that are already loaded."""
    # The last observations as the model saw them and, with VecNormalize, before normalisation.
    shown, original = data.get("_last_obs"), data.get("_last_original_obs")
    was_normalised = None
    if shown is not None and "_last_original_obs" in data:
        texts = [as_dict(value).get(":serialized:") for value in (shown, original)]
        was_normalised = original is not None and texts[0] != texts[1]
    policy, started = str(as_dict(data.get("policy_class")).get("__module__")), data.get("start_time")
    is_known = isinstance(started, int | float) and not isinstance(started, bool)
    return About(was_normalised, (policy, started) if is_known and started else None)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip with the members of a saved model."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {DATA, WEIGHTS} <= set(archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def as_dict(value: Any) -> dict[str, Any]:
    """Return a value of the settings if it is a dict, otherwise an empty dict."""
    return value if isinstance(value, dict) else {}


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the settings and the state dict of a saved model.

    Raises:
        UserError: the file is missing, truncated, too large or of another kind.
    """
    data = _read_settings(path)
    try:
        state = load_tensors(_member(path, WEIGHTS), f"{path}: its {WEIGHTS}")
    except NotTensorsError as error:
        raise UserError(
            f"{path}: its {WEIGHTS} is cut off or holds more than tensors, which is not read ({error}); {EXPECTED}"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: its {WEIGHTS} is not a dict; {EXPECTED}")
    check_arrays(state, f"{path}: its {WEIGHTS}")
    return data, state


def _read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a saved model."""
    try:
        data = json.loads(_member(path, DATA))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its {DATA} is not JSON ({error}); {EXPECTED}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: its {DATA} is not a dict; {EXPECTED}")
    return data


def _member(path: Path, name: str) -> bytes:
    """Read a member of the zip; raise if it is implausibly large."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; {EXPECTED}, a .zip")
    check_file(path, _MOST_BYTES)
    check_zip(path, str(path), _MOST_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            missing = [wanted for wanted in (DATA, WEIGHTS) if wanted not in names]
            if not missing and (name != DATA or archive.getinfo(name).file_size <= _MOST_DATA):
                return archive.read(name)
    except (*DAMAGED, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a whole zip ({error}); {EXPECTED}, copy or download it again") from error
    if not missing:
        raise UserError(f"{path}: its {name} has more than {_MOST_DATA / MIB:,.0f} MiB; {EXPECTED}")
    shown = ", ".join(names[:5])[:200]
    raise UserError(
        f"{path} holds {shown} but no {' and no '.join(missing)}; {EXPECTED}: give that zip, or if this one was cut "
        "off, copy or download it again"
    )
