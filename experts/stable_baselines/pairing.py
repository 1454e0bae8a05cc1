"""Find the observation statistics that belong to a saved model among the files around it.

``VecNormalize`` saves its statistics to a separate file, and a model with the wrong statistics acts badly without any
error. RL Zoo stores ``<environment>.zip`` next to ``<environment>/vecnormalize.pkl`` and ``config.yml``; repositories
on the Hub keep all files in one folder; ``CheckpointCallback`` stores ``rl_model_100_steps.zip`` next to
``rl_model_vecnormalize_100_steps.pkl``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from experts.importing.pickles import MOST_BYTES
from experts.stable_baselines.saved_model import About, about, is_archive
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.foreign import MIB, check_file

CONFIG = "config.yml"
_NORMALISER = re.compile(r"vec[_-]?normalize", re.IGNORECASE)
_MAX_CONFIG = 4 * MIB

# In RL Zoo's configuration, a list of pairs: `normalize` normalises observations unless norm_obs is false.
_IS_NORMALISED = re.compile(r"\bnormalize(?::|\s*\n\s*-)[ ]+(?!false\b)\S", re.IGNORECASE)
_ONLY_REWARDS = re.compile(r"norm_obs\W+false\b", re.IGNORECASE)


def statistics_of(path: Path, origin: str, root: Path) -> Path | None:
    """Return the statistics file that belongs to a model; None if it was trained without one.

    Args:
        path: the zip of the model.
        origin: name of the model in messages.
        root: folder of the source; links out of it are not followed.

    Raises:
        UserError: the model was trained with statistics that are missing, or it is ambiguous which file is the right
            one.
    """
    known = about(path)
    others = [other for other in sorted(path.parent.glob("*.zip")) if other != path and is_archive(other)]
    strangers = [other for other in others if not _is_of_training(other, path, known)]
    own, shared, unowned = _sorted_by_owner(path, others, strangers)
    found = own or shared or unowned
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path.parent)) for file in found)
        raise UserError(
            f"{origin} has several statistics of observations beside it ({names}); keep the right one there"
        )
    if found and strangers and not (own or shared):
        if known.was_normalised is False:
            return None
        raise UserError(
            f"{origin}: {found[0].relative_to(path.parent)} belongs to it or to {strangers[0].name}, which another "
            f"training made; give each a folder of its own, or name the file {path.stem}_vecnormalize.pkl"
        )
    if not found and known.was_normalised is not False:
        _refuse_if_normalised(path, origin, {other.stem for other in strangers}, root)
    if found:
        check_file(found[0], MOST_BYTES, root)
    return found[0] if found else None


def _is_of_training(other: Path, path: Path, known: About) -> bool:
    """Whether both models are from the same training, as far as their settings show, or are copies of each other."""
    if known.training is not None and about(other).training == known.training:
        return True
    return other.stat().st_size == path.stat().st_size and sha256_of(other) == sha256_of(path)


def _sorted_by_owner(
    path: Path, others: Sequence[Path], strangers: Sequence[Path]
) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the statistics files around a model: its own, those of its training, and those of unknown owner."""
    own, shared, unowned = [], [], []
    by_name = {_letters(other.stem): other for other in others}
    for file in sorted(path.parent.glob("*.pkl")) + sorted(path.parent.glob("*/*.pkl")):
        if not _NORMALISER.search(file.name):
            continue
        name = _letters(_NORMALISER.sub("", file.stem))
        folder = "" if file.parent == path.parent else _letters(file.parent.name)
        if _letters(path.stem) in (name, folder):
            own.append(file)
        elif name in by_name:
            continue  # belongs to another model only
        elif folder in by_name:
            shared += [file] if by_name[folder] not in strangers else []
        else:
            unowned.append(file)
    return own, shared, unowned


def _letters(stem: str) -> str:
    """Return a name in lower case, with letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", stem.lower())


def _refuse_if_normalised(path: Path, origin: str, strangers: Collection[str], root: Path) -> None:
    """Raise if the training's configuration says that the model, which has no statistics, needs them."""
    own = path.parent / path.stem / CONFIG
    around = [path.parent / CONFIG, *sorted(path.parent.glob(f"*/{CONFIG}"))]
    for config in [own] if own.is_file() else around:
        if config.parent.name in strangers or not config.is_file():
            continue
        check_file(config, _MAX_CONFIG, root)
        text = config.read_text(encoding="utf-8", errors="replace")
        if _IS_NORMALISED.search(text) and not _ONLY_REWARDS.search(text):
            raise UserError(
                f"{origin} was trained on normalised observations, as {config.relative_to(path.parent)} says, but "
                "without their statistics; put its vec_normalize.pkl beside it"
            )
