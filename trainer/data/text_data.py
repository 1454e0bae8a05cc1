"""Batches of texts, and of images with texts, with the same interface as those of tasks.

A corpus is converted once to flat arrays on disk: the concatenated token ids of all its documents, and the unchanged
bytes of its image files. Documents are cut into windows as episodes are, and batches are planned in the same way: their
order is a pure function of (seed, index). Images are decoded when a batch is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from pipeline.errors import UserError
from pipeline.files import rename_unless_exists, temporary_beside, write_json
from pipeline.images import TOO_LARGE, BadImageError, opened
from pipeline.records import read_values
from trainer.batch import TextBatch
from trainer.data.batches import BatchPlan, cut_windows, name_rows, pad_windows
from trainer.data.tokenizer import end_id

# Those of CLIP, whose image preprocessing JAT uses.
PICTURE_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PICTURE_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

MAX_PICTURE_PIXELS = 64 * 10**6  # maximum pixels of an image, before and after scaling
_CHUNK = 1000  # documents per tokeniser call


@dataclass(frozen=True)
class TokenizedDocument:
    """A text, and the image file (PNG, JPEG, ...) that belongs to it, if any."""

    text: str
    picture: bytes | None = None


@dataclass(frozen=True)
class TextArrays:
    """A corpus of D documents with S tokens in all, memory-mapped.

    Attributes:
        name: name of the corpus.
        tokens: ``(S,)`` int32.
        starts: ``(D + 1,)`` int64; document d is tokens ``starts[d]`` to ``starts[d + 1]``.
        pictures: ``(bytes,)`` uint8, the concatenated image files; None for a corpus without images.
        picture_starts: ``(D + 1,)`` int64, offsets into ``pictures``; None for a corpus without images.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    pictures: np.ndarray | None = None
    picture_starts: np.ndarray | None = None

    def picture(self, document: int) -> bytes:
        """Return the image file of a document."""
        assert self.pictures is not None and self.picture_starts is not None
        return bytes(self.pictures[self.picture_starts[document] : self.picture_starts[document + 1]])


def lay_out(
    name: str, documents: Iterable[TokenizedDocument], tokenizer: Tokenizer, has_boundaries: bool, directory: Path
) -> TextArrays:
    """Tokenise a corpus into ``directory``; skipped if it exists.

    Args:
        name: name of the corpus.
        documents: streamed, all with images or all without.
        tokenizer: converts texts to ids.
        has_boundaries: put the end-of-text id before and after each document.
        directory: its name identifies all inputs that determine the result.

    Raises:
        UserError: some documents have images and some do not, or there are no documents.
    """
    if not directory.exists():
        with temporary_beside(directory) as temporary:
            temporary.mkdir()
            _write(name, documents, tokenizer, has_boundaries, temporary)
            rename_unless_exists(temporary, directory)  # several workers may tokenise the same corpus concurrently
    fix = f"remove {directory}; it is made again"
    about = read_values(directory / "corpus.json", dict[str, bool], "the record of a tokenised corpus", fix)
    has_pictures = about.get("has_pictures", False)
    return TextArrays(
        name,
        np.memmap(directory / "tokens.bin", np.int32, "r"),
        np.load(directory / "starts.npy"),
        np.memmap(directory / "pictures.bin", np.uint8, "r") if has_pictures else None,
        np.load(directory / "picture_starts.npy") if has_pictures else None,
    )


def _write(
    name: str, documents: Iterable[TokenizedDocument], tokenizer: Tokenizer, has_boundaries: bool, directory: Path
) -> None:
    starts, picture_starts = [0], [0]
    boundary = [end_id(tokenizer)] if has_boundaries else []
    with_pictures: set[bool] = set()
    left = iter(documents)
    with (directory / "tokens.bin").open("wb") as tokens, (directory / "pictures.bin").open("wb") as pictures:
        while chunk := list(islice(left, _CHUNK)):
            for document, encoding in zip(
                chunk, tokenizer.encode_batch([document.text for document in chunk]), strict=True
            ):
                ids = np.array([*boundary, *encoding.ids, *boundary], np.int32)
                if len(ids) < 2:
                    continue  # nothing to predict
                with_pictures.add(document.picture is not None)
                tokens.write(ids.tobytes())
                pictures.write(document.picture or b"")
                starts.append(starts[-1] + len(ids))
                picture_starts.append(picture_starts[-1] + len(document.picture or b""))
    if len(with_pictures) != 1:
        problem = "has no text" if not with_pictures else "has documents with and without a picture"
        raise UserError(f"{name} {problem}; build it again with `jat corpora`")
    np.save(directory / "starts.npy", np.array(starts, np.int64))
    np.save(directory / "picture_starts.npy", np.array(picture_starts, np.int64))
    write_json(directory / "corpus.json", {"has_pictures": with_pictures == {True}})


class TextBatches:
    """Batches of one corpus, planned as those of a task are.

    Args:
        arrays: the corpus.
        context_positions: maximum window length, including the positions of an image. A longer document is cut into
            several windows; with an image only the first part is used.
        batch_positions: maximum number of positions in a batch, including padding.
        picture_size: side of an image in pixels.
        num_patches: number of positions of an image.
        seed: determines the order.
    """

    def __init__(
        self,
        arrays: TextArrays,
        context_positions: int,
        batch_positions: int,
        picture_size: int,
        num_patches: int,
        seed: Sequence[int],
    ) -> None:
        self._arrays, self._picture_size = arrays, picture_size
        self._overhead = num_patches if arrays.pictures is not None else 0
        longest = context_positions - self._overhead
        if longest < 2:
            raise UserError(
                f"{arrays.name}: a picture takes {num_patches} of {context_positions} positions and leaves none for "
                "a text; raise --context-steps or lower --model.picture-size"
            )
        if arrays.pictures is None:
            starts, lengths, _ = cut_windows(arrays.starts, longest)
            # A window of one token has nothing to predict.
            self._starts, self._lengths = starts[lengths >= 2], lengths[lengths >= 2]
            self._documents = None
        else:
            self._starts = arrays.starts[:-1]
            self._lengths = np.minimum(np.diff(arrays.starts), longest)
            self._documents = np.arange(len(self._starts))
        self._plan = BatchPlan(self._lengths + self._overhead, batch_positions, seed)
        self.num_batches = self._plan.num_batches

    def parts(self, index: int) -> list[TextBatch]:
        """Return the ``index``-th batch of an endless sequence of epochs, in parts of different widths."""
        return [self._gather(windows) for windows in self._plan.parts(index)]

    def describe(self, index: int) -> str:
        """Describe a batch by corpus and rows of its documents, for messages."""
        starts = self._starts[np.concatenate(self._plan.parts(index))]
        return f"{self._arrays.name}, documents {name_rows(self._arrays.starts, starts)}"

    def _gather(self, chosen: np.ndarray) -> TextBatch:
        positions, mask = pad_windows(self._starts[chosen], self._lengths[chosen])
        pictures = None
        if self._documents is not None:
            pictures = torch.from_numpy(np.stack([self._picture(document) for document in self._documents[chosen]]))
        return TextBatch(
            tokens=torch.from_numpy(self._arrays.tokens[positions].astype(np.int64)),
            mask=torch.from_numpy(mask),
            pictures=pictures,
        )

    def _picture(self, document: int) -> np.ndarray:
        return prepare_picture(self._arrays.picture(document), self._picture_size, f"{self._arrays.name} {document}")


def prepare_picture(data: bytes, size: int, name: str) -> np.ndarray:
    """Preprocess an image as JAT does, to ``(3, size, size)`` float32.

    Its shorter side is scaled to ``size`` (bicubic), the centre square is cropped, and colours are standardised.

    Args:
        data: a PNG, JPEG or other file that Pillow reads.
        size: side in pixels.
        name: name of the image, for the message.

    Raises:
        UserError: it is not an image.
    """
    from PIL import Image

    try:
        with opened(data) as image:
            width, height = image.size
            shorter = min(width, height)
            scaled = (max(size, size * width // shorter), max(size, size * height // shorter))
            if max(width * height, scaled[0] * scaled[1]) > MAX_PICTURE_PIXELS:
                raise BadImageError(TOO_LARGE, f"{width} x {height} pixels")
            picture = image.convert("RGB")
    except BadImageError as error:
        raise UserError(f"{name} is not a picture that can be read ({error})") from error
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    square = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32) / 255
    return np.moveaxis((square - PICTURE_MEAN) / PICTURE_STD, -1, 0)
