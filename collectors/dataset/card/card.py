"""Write the dataset card: README.md, with plots and animations in ``card/``.

The front matter describes the files to ``datasets`` and the Hub; the text describes the dataset to people.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from collectors.dataset.card.configs import all_episodes_config, table_pair
from collectors.dataset.card.corpora import corpus_categories, corpus_configs, corpus_section
from collectors.dataset.card.imported import imported_section
from collectors.dataset.card.notes import EXPERT_KINDS, JAT_CITATION
from collectors.dataset.card.previews import FOLDER, Preview
from collectors.dataset.card.rows import DOMAIN_HEADINGS, TASK_HEADINGS, CardRow, DomainRow, domain_rows, reasons
from collectors.dataset.layout import CARD
from collectors.dataset.markdown import as_code, as_text
from pipeline.envs.domain import Domain
from pipeline.envs.registry import domain_named
from pipeline.envs.task import Task
from pipeline.files import replacing
from pipeline.seeds import FIRST_SEED
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.plan import describe_missing
from pipeline.storage.schema import ALL_EPISODES, EPISODES_SUFFIX, episode_features, features
from pipeline.storage.statistics import TaskStatistics, merge_all
from pipeline.text import format_count
from pipeline.versions import format_versions

log = logging.getLogger(__name__)

TEMPLATE = "card.md.j2"
MAX_PREVIEWS_PER_LINE = 4
LEFT_COLUMNS = ("", "task", "expert", "experts")  # left-aligned table columns; numbers are right-aligned
# The Hub's names for ranges of the number of rows.
SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"),
)  # fmt: skip


@dataclass(frozen=True)
class _Section:
    """The card's section on a domain; ``plot`` is the picture's path in the dataset, or None."""

    notes: Domain
    num_tasks: int
    table: str
    plot: str | None
    versions: str
    rejected: str  # reasons with counts; empty if none
    weak: str  # tasks to use with care, with reasons; empty if none


def write_card(
    dataset: Path,
    manifest: DatasetManifest,
    tasks: Sequence[Task],
    statistics: Sequence[TaskStatistics],
    previews: Sequence[Preview] = (),
    quality: str = "",
) -> None:
    """Write the card of a dataset and its plots.

    Args:
        dataset: its folder.
        manifest: of the dataset.
        tasks: those of the dataset.
        statistics: of each of these tasks.
        previews: animations that are already in the folder.
        quality: the section on quality.
    """
    domains = domain_rows(tasks, statistics)
    sections = [_section(dataset, manifest, domain) for domain in domains]
    body = _body(domains, sections, previews) if tasks else ""
    front = yaml.safe_dump(_front_matter(manifest, tasks, statistics), sort_keys=False, width=1000)
    with replacing(dataset / CARD) as temporary:
        temporary.write_text(
            f"---\n{front}---\n\n{body}{quality}{_missing_section(manifest)}{imported_section(manifest, tasks)}"
            f"{_edits_section(manifest)}"
            f"{corpus_section(manifest)}",
            encoding="utf-8",
        )


def _missing_section(manifest: DatasetManifest) -> str:
    """Planned episodes that are missing; empty if there are none."""
    if not manifest.missing:
        return ""
    return f"\n## Planned and not collected\n\n{describe_missing(manifest.missing, manifest.tasks)}.\n"


def _edits_section(manifest: DatasetManifest) -> str:
    """How the dataset was made from others; empty if it was built from shards."""
    if not manifest.edits:
        return ""
    lines = "\n".join(f"- {as_code(line)}" for line in manifest.edits)
    return f"\n## Made from other datasets\n\n{lines}\n"


def _section(dataset: Path, manifest: DatasetManifest, domain: DomainRow) -> _Section:
    name = f"{FOLDER}/{domain.domain}.png"
    versions = {format_versions(manifest.tasks[row.task.name].versions): None for row in domain.tasks}
    return _Section(
        notes=domain_named(domain.domain),
        num_tasks=len(domain.tasks),
        table=_table(TASK_HEADINGS, [[f"<nobr>{cell}</nobr>" for cell in row.cells] for row in domain.tasks]),
        rejected=_listed([f"{count:,} because of {as_code(why)}" for why, count in reasons(domain.tasks).items()]),
        plot=name if _plot(dataset / name, domain) else None,
        versions="; ".join(map(as_text, filter(None, versions))) or "not known: imported",
        weak=_listed([_weakness(row) for row in domain.tasks if row.is_weak]),
    )


def _plot(path: Path, domain: DomainRow) -> bool:
    """Write the plot; returns whether there was data to plot and matplotlib is installed."""
    if not any(row.train.num_episodes for row in domain.tasks):
        return False
    try:
        from collectors.dataset.card.plots import write_plot

        write_plot(path, domain)
    except ImportError as error:
        log.warning("the card of the dataset has no plots: %s", error)
        return False
    return True


def _body(domains: Sequence[DomainRow], sections: Sequence[_Section], previews: Sequence[Preview]) -> str:
    import jinja2

    rows = [row for domain in domains for row in domain.tasks]
    example = rows[0]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # the output is Markdown
    )
    used = [section.notes for section in sections]
    titles = [notes.title for notes in used]
    return environment.get_template(TEMPLATE).render(
        num_tasks=len(rows),
        num_episodes=sum(row.both.num_episodes for row in rows),
        num_steps=sum(row.both.num_steps for row in rows),
        size=_size(sum(row.both.num_bytes for row in rows)),
        titles=_listed(titles),
        no_scale=_listed([f"`{row.task.name}`" for row in rows if row.jat_range is None]),
        previews=_gallery(previews),
        summary=_table(
            DOMAIN_HEADINGS, [(title, *domain.cells) for title, domain in zip(titles, domains, strict=True)]
        ),
        domains=sections,
        example=example.task,
        example_seed=FIRST_SEED["train"],
        columns=", ".join(features(example.task)),
        suffix=EPISODES_SUFFIX,
        all_episodes=ALL_EPISODES,
        first_seeds=FIRST_SEED,
        actors="\n".join(map(_actors, domains)),
        kinds=_kinds(domains),
        mixed=_listed([f"`{row.task.name}`" for row in rows if len(row.both.experts) > 1]),
        noise=_noise(rows),
        labels=_labels(rows),
        citations="\n\n".join(dict.fromkeys([JAT_CITATION, *(entry for notes in used for entry in notes.citations)])),
    )


def _gallery(previews: Sequence[Preview]) -> str:
    """Rows of a few animations, one domain after another, each row followed by their names.

    Rows have about equal lengths, so that no column is empty and only the last row may have gaps.
    """
    if not previews:
        return ""
    num_lines = -(-len(previews) // MAX_PREVIEWS_PER_LINE)
    num_columns = -(-len(previews) // num_lines)
    lines: list[tuple[str, ...]] = []
    for begin in range(0, len(previews), num_columns):
        part = previews[begin : begin + num_columns]
        empty = ("",) * (num_columns - len(part))
        lines.append((*(f"![{preview.task.name}]({preview.name})" for preview in part), *empty))
        lines.append((*map(_caption, part), *empty))
    return _table(lines[0], lines[1:], centred=True)


def _caption(preview: Preview) -> str:
    return f"`{preview.task.name}`" + ("" if preview.seed is None else f"<br>seed {preview.seed}")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], centred: bool = False) -> str:
    marks = [":---:" if centred else "---" if heading in LEFT_COLUMNS else "---:" for heading in headings]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, marks, *rows))


def _listed(names: Sequence[str]) -> str:
    """Join as ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _actors(domain: DomainRow) -> str:
    """A line with the kinds of experts and how many tasks of a domain each played."""
    kinds = Counter(kind for row in domain.tasks for kind in row.expert_kinds)
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    tasks = [f"{as_code(kind)} in {count} {'task' if count == 1 else 'tasks'}" for kind, count in ordered]
    return f"- {domain_named(domain.domain).title}: {', '.join(tasks) or 'unknown'}."


def _kinds(domains: Sequence[DomainRow]) -> str:
    """One sentence per kind of expert."""
    kinds = sorted({kind for domain in domains for row in domain.tasks for kind in row.expert_kinds})
    return " ".join(f"`{kind}` is {EXPERT_KINDS[kind]}." for kind in kinds if kind in EXPERT_KINDS)


def _weakness(row: CardRow) -> str:
    parts = [] if row.train.success_rate is None else [f"success {row.train.success_rate:.2f}"]
    if row.on_jat_scale is not None:
        parts.append(f"{row.on_jat_scale:.2f} on JAT's scale")
    if row.rejected_share:
        parts.append(f"{row.rejected_share:.0%} of its seeds rejected")
    return f"`{row.task.name}` ({', '.join(parts)})"


def _noise(rows: Sequence[CardRow]) -> str:
    """Describe the action noise and how many episodes have it; empty if there is none."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update({noise: count for noise, count in row.both.noise.items() if noise})
    return _listed([f"{as_code(noise)} in {format_count(count, 'episode')}" for noise, count in sorted(counts.items())])


def _labels(rows: Sequence[CardRow]) -> str:
    """Say which tasks have labels, by whom, and how many steps lack one; empty if none has."""
    found = [row.both for row in rows if row.both.label_experts]
    if not found:
        return ""
    names = [f"`{row.task.name}`" for row in rows if row.both.label_experts]
    experts = sorted({revision for both in found for revision in both.label_experts})
    asked = sum(both.num_labelled + both.num_unlabelled for both in found)
    missing = sum(both.num_unlabelled for both in found)
    return (
        f"{_listed(names)} ({sum(sum(both.label_experts.values()) for both in found):,} episodes), by "
        f"{_listed([as_code(revision) for revision in experts])}; {missing:,} of {asked:,} steps have none"
    )


def _front_matter(
    manifest: DatasetManifest, tasks: Sequence[Task], statistics: Sequence[TaskStatistics]
) -> dict[str, Any]:
    configs, infos = [], []
    labelled_by = {found.task: merge_all(list(found.splits.values())).label_experts for found in statistics}
    for task in tasks:
        splits = manifest.tasks[task.name].splits
        labels = bool(labelled_by[task.name])
        of_task = table_pair(task.name, EPISODES_SUFFIX, features(task, labels), episode_features(labels), splits)
        configs += of_task[0]
        infos += of_task[1]
    of_corpora = corpus_configs(manifest)
    configs += of_corpora[0]
    infos += of_corpora[1]
    if tasks:
        of_all = all_episodes_config(
            episode_features(any(labelled_by.values())),
            {task.name: manifest.tasks[task.name].splits for task in tasks},
        )
        configs.append(of_all[0])
        infos.append(of_all[1])
    num_rows = sum(split.num_episodes for task in manifest.tasks.values() for split in task.splits.values())
    num_rows += sum(split.num_documents for corpus in manifest.corpora.values() for split in corpus.splits.values())
    of_tasks = ["reinforcement-learning", "robotics"] if tasks else []
    return {
        "pretty_name": "Expert episodes",
        "license": "other" if manifest.corpora else "apache-2.0",  # texts and images have licences of their own
        "task_categories": of_tasks + corpus_categories(manifest),
        "size_categories": [next((name for limit, name in SIZES if num_rows < limit), "n>1B")],
        "tags": sorted({task.domain for task in tasks} | {"imitation-learning", "expert trajectories"}),
        **({"language": ["en"]} if any(task.has_text for task in tasks) else {}),
        "configs": configs,
        "dataset_info": infos,
    }
