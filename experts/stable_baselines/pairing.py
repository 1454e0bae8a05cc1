"""Which statistics of observations belong to a saved model, of all that lie around it.

``VecNormalize``'s statistics are a file of their own, and a model with those of another acts badly without a word. RL
Zoo keeps ``<environment>.zip`` beside ``<environment>/vecnormalize.pkl`` and ``config.yml``, the Hub all in one folder,
``CheckpointCallback`` ``rl_model_100_steps.zip`` beside ``rl_model_vecnormalize_100_steps.pkl``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from experts.pickles import MOST_BYTES
from experts.stable_baselines.saved_model import About, about, is_archive
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.foreign import MIB, check_file

CONFIG = "config.yml"
_NORMALISER = re.compile(r"vec[_-]?normalize", re.IGNORECASE)
_MAX_CONFIG = 4 * MIB

# Of RL Zoo's list of pairs: the observations were normalised, unless it says otherwise.
_IS_NORMALISED = re.compile(r"\bnormalize(?::|\s*\n\s*-)[ ]+(?!false\b)\S", re.IGNORECASE)
_ONLY_REWARDS = re.compile(r"norm_obs\W+false\b", re.IGNORECASE)


def statistics_of(path: Path, origin: str, root: Path) -> Path | None:
    """The statistics that belong to a model; None if it was trained without any.

    Args:
        path: the zip.
        origin: what to call it in messages.
        root: the folder it came in; links out of it are not followed.

    Raises:
        UserError: there are none though it was trained with some, or it is not known which are its own.
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
    """Whether one training saved both models, as far as they tell; copies are."""
    if known.training is not None and about(other).training == known.training:
        return True
    return other.stat().st_size == path.stat().st_size and sha256_of(other) == sha256_of(path)


def _sorted_by_owner(
    path: Path, others: Sequence[Path], strangers: Sequence[Path]
) -> tuple[list[Path], list[Path], list[Path]]:
    """Statistics around a model: its own, those of its training, and those whose names do not tell."""
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
            continue  # of one of the others alone
        elif folder in by_name:
            shared += [file] if by_name[folder] not in strangers else []
        else:
            unowned.append(file)
    return own, shared, unowned


def _letters(stem: str) -> str:
    """A name without what separates its words."""
    return re.sub(r"[^a-z0-9]", "", stem.lower())


def _refuse_if_normalised(path: Path, origin: str, strangers: Collection[str], root: Path) -> None:
    """Refuse a model without statistics whose training's configuration says that there were some."""
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
