"""The four text and image corpora of JAT, and how a row of a source becomes a document.

JAT's published columns are ``text`` for two of them, ``images`` (one image) and ``text`` for the others. What makes a
text is JAT's: an article or page as it is, ``Q: <question> A: <first answer>`` for a question about an image, the
caption of a web image. A source may have these columns already, as JAT's own dataset has, or those of the original.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.seeds import SPLITS

# Of a source without a test split, every tenth row is for testing, as a tenth of JAT's episodes is.
TEST_EVERY = 10


@dataclass(frozen=True)
class CorpusLayout:
    """Columns of a source that make a document.

    Attributes:
        columns: all that are needed; a source that has them is of this layout.
        text: makes the text of a row with these columns; None or blank if there is none.
        image: the column that holds an image, or the address of one.
        origin: a column that tells where the document comes from, kept in the side table if the source has it.
    """

    columns: tuple[str, ...]
    text: Callable[[Mapping[str, Any]], str | None]
    image: str | None = None
    origin: str | None = None


@dataclass(frozen=True)
class Corpus:
    """One row of the table.

    Attributes:
        name: JAT's name for it.
        source: where its rows come from if nothing else is said (``collectors/documents/sources.py`` has the syntax).
        has_images: whether a document is an image with a text.
        layouts: what a source may look like.
        licence: under which terms, for the dataset's card.
    """

    name: str
    source: str
    has_images: bool
    layouts: tuple[CorpusLayout, ...]
    licence: str

    def layout_of(self, columns: Sequence[str], source: str) -> CorpusLayout:
        """The layout of a source with ``columns``.

        Raises:
            UserError: it has none that this corpus can be made of.
        """
        for layout in self.layouts:
            if set(layout.columns) <= set(columns):
                return layout
        expected = " or ".join("+".join(layout.columns) for layout in self.layouts)
        raise UserError(f"{source} has the columns {', '.join(columns)}; {self.name} is made of {expected}")


@dataclass(frozen=True)
class Document:
    """One row of a source: what it became, or why it was rejected.

    Attributes:
        index: its number among the rows of the source that its split is drawn from, from 0.
        text: not blank, unless rejected.
        image: a JPEG or PNG file, RGB; None if the corpus has none.
        origin: where it comes from, such as the address of the page or the image; None if not known.
        rejected: the reason, or None.
    """

    index: int
    text: str
    image: bytes | None = None
    origin: str | None = None
    rejected: str | None = None


def split_of(index: int, splits: Sequence[str]) -> str:
    """Which of the splits that share the rows of one source a row belongs to."""
    if len(splits) == 1:
        return splits[0]
    train, test = SPLITS
    return test if index % TEST_EVERY == TEST_EVERY - 1 else train


def rows_for(num_train: int) -> int:
    """Rows of a source without a test split that give ``num_train`` training documents, and at least one for testing.

    Rejected ones count, as seeds do.
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
    if isinstance(answers, Mapping):  # of lists, as `datasets` once stored a list of structs
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
        # What JAT took: English OSCAR, deduplicated and cleaned. `oscar-corpus/OSCAR-2301` (its columns are the second
        # layout) asks for consent and an account.
        "oscar",
        "hub:ClementRomac/cleaned_deduplicated_oscar/data",
        False,
        (_JAT_TEXT, CorpusLayout(("content",), _content)),
        "OSCAR: metadata and annotations under CC0 1.0; the texts are of Common Crawl and stay their authors'.",
    ),
    Corpus(
        # The original is scripts and archives, which `datasets` no longer runs; JAT's copy is Parquet.
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
    """Corpora that a name or glob of the comma list ``pattern`` matches, in table order; perhaps none."""
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
