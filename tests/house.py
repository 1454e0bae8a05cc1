"""The size of the house: lines, modules, folders, documents and options, each beside its target.

    python -m tests.house

`make lint` prints it. A limit that the project keeps fails the command once it is broken; one that it does not keep yet
is only shown. It also fails if a module joins a path of a run by itself instead of asking ``pipeline/run_layout.py``.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "experts", "collectors", "trainer", "dags")
RUN_LAYOUT = Path("pipeline", "run_layout.py")
LOCKS = ("lock", ".lock")  # any folder can have one


@dataclass(frozen=True)
class Size:
    """A number of the project.

    Attributes:
        what: is counted.
        value: today.
        target: the most it should be.
        where: the file or folder it is of, if it is the largest of several.
        is_kept: whether more than the target is an error.
    """

    what: str
    value: int
    target: int
    where: str = ""
    is_kept: bool = False

    @property
    def is_broken(self) -> bool:
        return self.is_kept and self.value > self.target


def sizes(root: Path = ROOT) -> list[Size]:
    """All numbers of the project in ``root``."""
    modules = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    named = [path for path in modules if path.name != "__init__.py"]
    folder, in_folder = Counter(path.parent for path in named).most_common(1)[0]
    documents = {path: count_lines(path) for path in sorted((root / "docs").glob("*.md"))}
    document = max(documents, key=lambda path: documents[path])
    module = max(modules, key=count_lines)
    embedded = (path for path in (root / "experts" / "embedded").rglob("*") if path.is_file())
    return [
        Size("source lines", sum(map(count_lines, modules)), 26_500),
        Size("modules", len(named), 160),
        Size("modules in the largest folder", in_folder, 16, str(folder.relative_to(root))),
        Size("lines of the longest module", count_lines(module), 350, str(module.relative_to(root))),
        Size("options of all commands", sum(count_options(path) for path in modules), 200),
        Size("lines of README.md", count_lines(root / "README.md"), 200, is_kept=True),
        Size("lines of the longest document", documents[document], 150, str(document.relative_to(root)), True),
        Size("kilobytes of embedded experts", sum(path.stat().st_size for path in embedded) // 1000, 25_000, "", True),
    ]


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def count_options(path: Path) -> int:
    """Fields of the classes in a module whose name ends with Config: each is an option of a command.

    A class that describes its fields as attributes is a record of a file; an option is described below its field.
    """
    return sum(1 for _ in _options(ast.parse(path.read_text(encoding="utf-8"))))


def _options(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and not node.name.startswith("_"):
            if "Attributes:" in (ast.get_docstring(node) or ""):
                continue
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id


def path_joins(root: Path = ROOT) -> list[str]:
    """Places outside ``pipeline/run_layout.py`` that join something to ``out``, or a name that is written there."""
    tree = ast.parse((root / RUN_LAYOUT).read_text(encoding="utf-8"))
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    names = {value for value in constants if isinstance(value, str) and " " not in value} - set(LOCKS)
    found = []
    for path in (path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))):
        name = path.relative_to(root)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if name != RUN_LAYOUT else ():
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                is_name = isinstance(node.right, ast.Constant) and node.right.value in names
                if is_name or ast.unparse(node.left).split(".")[-1] == "out":
                    found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    return found


def shared_class_names(root: Path = ROOT) -> dict[str, list[str]]:
    """Names of classes that several modules define, with the modules: one name means one thing."""
    owners: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    owners.setdefault(node.name, []).append(str(path.relative_to(root)))
    return {name: paths for name, paths in owners.items() if len(paths) > 1}


def main() -> int:
    """Print the numbers; 1 if a limit that the project keeps is broken, a path is joined elsewhere, or two classes have
    one name."""
    found, joins, shared = sizes(), path_joins(), shared_class_names()
    for size in found:
        verdict = "" if size.value <= size.target else "  too many" if size.is_kept else "  not yet"
        name = f"{size.what} ({size.where})" if size.where else size.what
        sys.stdout.write(f"{name:<60} {size.value:>7,}  at most {size.target:>7,}{verdict}\n")
    for join in joins:
        sys.stdout.write(f"{join}: take it from RunLayout ({RUN_LAYOUT})\n")
    for name, paths in shared.items():
        sys.stdout.write(f"{name} is a class of {' and of '.join(paths)}: give one another name\n")
    return int(bool(joins or shared) or any(size.is_broken for size in found))


if __name__ == "__main__":
    sys.exit(main())
