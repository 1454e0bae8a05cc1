"""The four text and image corpora of JAT, and the conversion of a source row to a document.

JAT's published columns are ``text`` for two of them, ``images`` (one image) and ``text`` for the others. The text is
the same as JAT's: an unchanged article or page, ``Q: <question> A: <first answer>`` for a question about an image, the
caption of a web image. A source may have these columns, like JAT's own dataset, or the columns of the original.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.seeds import SPLITS

# Every tenth row of a source without a test split goes to the test split, like a tenth of JAT's episodes.
TEST_EVERY = 10


@dataclass(frozen=True)
class CorpusLayout:
    """Columns of a source, and their conversion to a document.

    Attributes:
        columns: required columns; a source that has them matches this layout.
        text: returns the text of a row with these columns; None or blank if there is no text.
        image: column with an image or the URL of one.
        origin: column with the origin of the document, copied to the side table if the source has it.
    """

    columns: tuple[str, ...]
    text: Callable[[Mapping[str, Any]], str | None]
    image: str | None = None
    origin: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A corpus of text, or of images with text.

    Attributes:
        name: JAT's name of the corpus.
        source: default source of its rows (``collectors/documents/sources.py`` has the syntax).
        has_images: whether a document is an image with a text.
        layouts: supported column layouts of a source.
        licence: licence text for the dataset's card.
    """

    name: str
    source: str
    has_images: bool
    layouts: tuple[CorpusLayout, ...]
    licence: str

    def layout_of(self, columns: Sequence[str], source: str) -> CorpusLayout:
        """The layout of a source with ``columns``.

        Raises:
            UserError: no layout of this corpus matches the columns.
        """
        for layout in self.layouts:
            if set(layout.columns) <= set(columns):
                return layout
        expected = " or ".join("+".join(layout.columns) for layout in self.layouts)
        raise UserError(f"{source} has the columns {', '.join(columns)}; {self.name} is made of {expected}")


@dataclass(frozen=True)
class Document:
    """Document made from one row of a source, or the reason why the row was rejected.

    Attributes:
        index: index, from 0, among the rows of the source that its split is drawn from.
        text: not blank, unless rejected.
        image: an RGB JPEG or PNG file; None if the corpus has no images.
        origin: origin of the document, such as the URL of the page or the image; None if unknown.
        rejected: the reason, or None.
    """

    index: int
    text: str
    image: bytes | None = None
    origin: str | None = None
    rejected: str | None = None


def split_of(index: int, splits: Sequence[str]) -> str:
    """Split of a row, among the splits that share the rows of one source."""
    if len(splits) == 1:
        return splits[0]
    train, test = SPLITS
    return test if index % TEST_EVERY == TEST_EVERY - 1 else train


def rows_for(num_train: int) -> int:
    """Number of rows of a source without a test split that give ``num_train`` training documents and a test document.

    Rejected documents count, like the seeds of rejected episodes.
    """
    return max(TEST_EVERY, num_train + (num_train - 1) // (TEST_EVERY - 1))


def _text(row: Mapping[str, Any]) -> str | None:
    return row["text"]


def _content(row: Mapping[str, Any]) -> str | None:
    return row["content"]


def _caption(row: Mapping[str, Any]) -> str | None:
    return row["caption"]


def _question_and_answer(row: Mapping[str, Any]) -> str | None:
    answers = row["answers"]
    if isinstance(answers, Mapping):  # older versions of `datasets` store a list of structs as a struct of lists
        answers = answers.get("answer") or ()
    first = next(iter(answers or ()), None)
    if isinstance(first, Mapping):
        first = first.get("answer")
    question = (row["question"] or "").strip()
    return f"Q: {question} A: {first}" if question and first else None


_JAT_TEXT = CorpusLayout(("text",), _text, origin="url")
_JAT_IMAGE = CorpusLayout(("images", "text"), _text, image="images")

CORPORA = (
    Corpus(
        "wikipedia",
        "hub:wikimedia/wikipedia/20231101.en",
        False,
        (_JAT_TEXT,),
        "Wikipedia: texts under CC BY-SA 3.0 and GFDL; the side table names each article's address.",
    ),
    Corpus(
        # JAT's source: English OSCAR, deduplicated and cleaned. `oscar-corpus/OSCAR-2301` (its columns are the second
        # layout) is gated: it requires consent and an account.
        "oscar",
        "hub:ClementRomac/cleaned_deduplicated_oscar/data",
        False,
        (_JAT_TEXT, CorpusLayout(("content",), _content)),
        "OSCAR: metadata and annotations under CC0 1.0; the texts are of Common Crawl and stay their authors'.",
    ),
    Corpus(
        # The original is a loading script with archives, which `datasets` no longer supports; JAT's copy is Parquet.
        "ok-vqa",
        "hub:jat-project/jat-dataset/ok-vqa",
        True,
        (_JAT_IMAGE, CorpusLayout(("image", "question", "answers"), _question_and_answer, image="image")),
        "OK-VQA: questions by its authors (okvqa.allenai.org); the images are COCO's, under Flickr's terms of use.",
    ),
    Corpus(
        "conceptual-captions",
        "hub:google-research-datasets/conceptual_captions/unlabeled",
        True,
        (_JAT_IMAGE, CorpusLayout(("image_url", "caption"), _caption, image="image_url", origin="image_url")),
        "Conceptual Captions: captions free for any purpose, with thanks to Google LLC; the images are their owners', "
        "whose addresses the side table names.",
    ),
)


def corpora_named(pattern: str) -> tuple[Corpus, ...]:
    """Corpora that match a name or glob of the comma-separated ``pattern``, in table order; may be empty."""
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    return tuple(corpus for corpus in CORPORA if any(fnmatch.fnmatchcase(corpus.name, part) for part in parts))


def select_corpora(pattern: str) -> tuple[Corpus, ...]:
    """Corpora matching ``pattern``, in table order.

    Raises:
        UserError: a part of the pattern matches nothing.
    """
    names = [corpus.name for corpus in CORPORA]
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    for part in parts or [""]:
        if not fnmatch.filter(names, part):
            nearest = difflib.get_close_matches(part, names, n=1, cutoff=0.4)
            hint = f"nearest: {nearest[0]}; " if nearest else ""
            raise UserError(f"no corpus matches {part!r}; {hint}there are {', '.join(names)}")
    return corpora_named(pattern)
