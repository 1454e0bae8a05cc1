"""The card's sections on corpora, for people and for ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collectors.dataset.card.configs import table_pair
from collectors.dataset.markdown import as_code, as_text
from pipeline.storage.corpora import CORPORA, Corpus
from pipeline.storage.manifest import CorpusManifest, CorpusSplit, DatasetManifest
from pipeline.storage.schema import DOCUMENTS_SUFFIX, document_features, document_side_features

TEXT = """
## Texts and images

{intro} One row is one document; `text` is its text, and `images`, where there is one, its image. The configuration
`<corpus>{suffix}` has one row per row of the source that was read: its number there (`index`), `characters`,
`image_bytes`, where it comes from (`origin`) and, if it was rejected, why; `row` is its row in the data file of the
same number.

```python
from datasets import load_dataset

path = "OWNER/NAME"  # this repository, or a folder with its files
documents = load_dataset(path, "{example}", split="train", streaming=True)
print(next(iter(documents))["text"])
```

| corpus | train documents | test documents | characters | images | MB | rejected | most often for | source |
|---|--:|--:|--:|--:|--:|--:|---|---|
{rows}

{licences}
"""
TITLE = "# {num_documents:,} texts and images\n"


def corpora_of(manifest: DatasetManifest) -> list[Corpus]:
    """The corpora of a dataset, in the order of the table."""
    return [corpus for corpus in CORPORA if corpus.name in manifest.corpora]


def corpus_section(manifest: DatasetManifest) -> str:
    """Markdown about the corpora; empty without any. In a dataset without tasks it is the whole card."""
    corpora = corpora_of(manifest)
    if not corpora:
        return ""
    names = ", ".join(f"`{corpus.name}`" for corpus in corpora)
    section = TEXT.format(
        intro=f"{names}, in the columns that JAT has them in.",
        suffix=DOCUMENTS_SUFFIX,
        example=corpora[0].name,
        rows="\n".join(_row(corpus, manifest.corpora[corpus.name]) for corpus in corpora),
        licences="\n".join(f"- {corpus.licence}" for corpus in corpora),
    )
    if manifest.tasks:
        return section
    splits = [split for corpus in manifest.corpora.values() for split in corpus.splits.values()]
    return TITLE.format(num_documents=sum(split.num_documents for split in splits)) + section


def _row(corpus: Corpus, info: CorpusManifest) -> str:
    train, test = info.splits["train"], info.splits["test"]
    both: Sequence[CorpusSplit] = (train, test)
    reasons: dict[str, int] = {}
    for split in both:
        for reason, count in split.rejected.items():
            reasons[reason] = reasons.get(reason, 0) + count
    cells = (
        corpus.name,
        f"{train.num_documents:,}",
        f"{test.num_documents:,}",
        f"{sum(split.num_characters for split in both):,}",
        f"{sum(split.num_images for split in both):,}",
        f"{sum(entry.num_bytes for split in both for entry in split.data) / 1e6:,.2f}",
        f"{sum(reasons.values()):,}",
        as_text(max(reasons, key=lambda reason: reasons[reason])) if reasons else "-",
        f"{as_code(info.source, in_table=True)} at {as_code(info.revision[:12], in_table=True)}",
    )
    return "| " + " | ".join(cells) + " |"


def corpus_configs(manifest: DatasetManifest) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``configs`` and ``dataset_info`` of the front matter."""
    configs, infos = [], []
    for corpus in corpora_of(manifest):
        columns, splits = document_features(corpus), manifest.corpora[corpus.name].splits
        of_corpus = table_pair(corpus.name, DOCUMENTS_SUFFIX, columns, document_side_features(), splits)
        configs += of_corpus[0]
        infos += of_corpus[1]
    return configs, infos


def corpus_categories(manifest: DatasetManifest) -> list[str]:
    """The Hub's task categories of the corpora."""
    corpora = corpora_of(manifest)
    return (["text-generation"] if corpora else []) + (
        ["image-to-text", "visual-question-answering"] if any(corpus.has_images for corpus in corpora) else []
    )
