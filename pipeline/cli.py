"""Parses the options of every command into one frozen dataclass, in three layers: default < recipe < flag.

A recipe is a function that returns a complete config; ``--recipe NAME`` selects one, and the other flags override its
fields. The resulting config is saved as JSON in the same folder as the command's outputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from pipeline.domain_files import add_domain_files
from pipeline.errors import JobsFailedError, UserError, how_to_install
from pipeline.files import explain_store_error, location, store_errors
from pipeline.secrets import RedactingFormatter, check_no_credentials, redacted
from pipeline.stopping import INTERRUPTED_CODE, STOPPED_CODE, stop_signals
from pipeline.tables import JSON, MARKDOWN, TEXT, TSV, choose_format
from pipeline.text import parse_count

ConfigT = TypeVar("ConfigT")

# Names of the loggers whose level `LOG_LEVEL` sets.
LOGGERS = ("pipeline", "experts", "collectors", "trainer", "dags", "progress")


def parse(
    config_type: type[ConfigT],
    recipes: Mapping[str, Callable[[], ConfigT]] | None = None,
    argv: Sequence[str] | None = None,
    prints_tables: bool = False,
) -> ConfigT:
    """Parse the command line into a config.

    Args:
        config_type: a frozen dataclass; the docstring under each field becomes its help text, units included.
        recipes: functions that return configs, by the name for ``--recipe``; ``default``, the dataclass with its
            default values, is always available and is used without ``--recipe``.
        argv: arguments without the program name; ``sys.argv[1:]`` if None.
        prints_tables: whether the command prints tables and so accepts ``--format`` (``pipeline/tables.py``).

    Raises:
        UserError: an unknown recipe, or an unknown format.
        SystemExit: code 2 for an unknown or malformed flag, 0 after ``--help``.
    """
    if _is_asked_only:
        raise CommandOptions(config_type, sorted(recipes or ()), prints_tables)
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)
    for word in arguments:
        check_no_credentials(word)  # before an error message or a log line repeats it
    recipes = {"default": config_type, **(recipes or {})}
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--recipe", default="default")
    before.add_argument("--domain", action="append", default=[])
    if prints_tables:
        before.add_argument("--format", default=TEXT)
    chosen, rest = before.parse_known_args(arguments)
    add_domain_files(chosen.domain)
    if chosen.recipe not in recipes:
        raise UserError(f"unknown recipe {chosen.recipe!r}; allowed: {', '.join(sorted(recipes))}")
    if prints_tables:
        choose_format(chosen.format)
    # A path may be the URL of an object store.
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def path_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: location(words[0]),
            is_instance=lambda value: hasattr(value, "joinpath"),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def count_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: parse_count(words[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    description = inspect.cleandoc(config_type.__doc__ or "")
    if len(recipes) > 1:
        description += f"\n\n--recipe NAME: where the defaults come from: {', '.join(sorted(recipes))}."
    if prints_tables:
        purposes = f"{TEXT} for people, {MARKDOWN} for documents, {JSON} or {TSV} for programs"
        description += f"\n\n--format NAME: of what is printed: {purposes}."
    if takes_tasks(config_type):
        description += (
            "\n\n--domain FILE: a Python file with domains of your own (docs/extending.md), which is run; JAT_DOMAINS "
            "names such files, too."
        )
    # A nested config whose type is a union keeps the class that the recipe chose.
    config = (tyro.conf.AvoidSubcommands,)
    options: dict[str, Any] = {"description": description, "registry": registry, "config": config}
    if chosen.recipe == "default":
        return tyro.cli(config_type, args=rest, **options)
    return tyro.cli(config_type, args=rest, default=recipes[chosen.recipe](), **options)


def takes_tasks(config_type: Any) -> bool:
    """Whether a config chooses tasks, so that ``--domain`` may add some."""
    return "task" in (field.name for field in dataclasses.fields(config_type))


class CommandOptions(Exception):  # noqa: N818 (no error: an answer)
    """What a command gives to ``parse``: its config, the names of its recipes, and whether it prints tables."""

    def __init__(self, config_type: type, recipes: Sequence[str], prints_tables: bool) -> None:
        super().__init__(config_type)
        self.config_type, self.recipes, self.prints_tables = config_type, recipes, prints_tables


_is_asked_only: list[bool] = []  # not empty while `options_of` asks a command for its options


def options_of(module: str) -> CommandOptions:
    """What a module's ``main`` gives to ``parse``, with which each begins; nothing of it is run after that."""
    _is_asked_only.append(True)
    try:
        importlib.import_module(module).main()
    except CommandOptions as options:
        return options
    finally:
        _is_asked_only.clear()
    raise AssertionError(f"{module} parses no options")


def by_name(number: type[int] | type[float]) -> Any:
    """Parse a dict of numbers from one flag, ``--flag NAME NUMBER NAME NUMBER``, which replaces the recipe's dict.

    Used as ``Annotated[dict[str, float], by_name(float)]``. By default tyro would make each key of the recipe's dict a
    flag of its own and allow no other keys.
    """
    import tyro

    def read(words: list[str]) -> dict[str, float]:
        if len(words) % 2:
            raise ValueError(
                f"a name and a number, again and again, are expected; there is an odd count of words: {words}"
            )
        return {name: number(value) for name, value in zip(words[::2], words[1::2], strict=True)}

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[STR {number.__name__.upper()} ...]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def check_at_least_one(config: object, *names: str, prefix: str = "") -> None:
    """Check that the config's fields ``names`` are all at least 1; ``prefix`` is that of a nested config's flags.

    Raises:
        UserError: a field is smaller; the message names the flag, its value and the allowed range.
    """
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise UserError(f"--{prefix}{name.replace('_', '-')} is {value}; it must be at least 1")


def configure_logging(level: int | str, *others: str) -> None:
    """Log to stderr: our own packages and ``others`` from ``level`` up, the rest from WARNING up."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in (*LOGGERS, *others):
        logging.getLogger(name).setLevel(level)


def run(module: str, program: str | None = None) -> None:
    """Run a module's ``main`` as a command: log to stderr, and print errors that a user can fix as one line.

    The module is imported by its name, although ``python -m`` has already executed it as ``__main__``, because workers
    can only unpickle functions and classes of modules that they can import.

    Exit codes: 2 for bad input, 1 for failed jobs, 130 after an interrupt, 143 after SIGTERM.

    Args:
        module: has a ``main`` without arguments, which reads ``sys.argv``.
        program: the command's name in help texts and errors, such as ``jat collect``; ``python -m MODULE`` if None.
    """
    sys.argv[0] = program or f"python -m {module}"
    configure_logging(os.environ.get("LOG_LEVEL", "INFO"), module.partition(".")[0])
    # By default OpenMP threads busy-wait for each other in a matrix product. On shared cores this makes a training step
    # ten times slower, because waiting threads occupy the cores of other processes. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.excepthook = _print_traceback
    try:
        with stop_signals():
            importlib.import_module(module).main()
    except UserError as error:
        _fail(str(error), 2)
    except JobsFailedError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in LOGGERS:
            raise  # one of our modules: a fault of the program
        _fail(
            f"the package {error.name.partition('.')[0]!r} is not installed for {sys.executable}; "
            f"run {how_to_install('all', 'setup')}",
            2,
        )
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED_CODE)
    except SystemExit as error:
        if error.code == STOPPED_CODE:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not change the exit code
            print("stopped; run the same command again to go on", file=sys.stderr)
        raise
    except store_errors() as error:
        explained = explain_store_error(error)
        if explained is None:
            raise
        logging.getLogger("pipeline").debug("where it happened", exc_info=True)
        _fail(*explained)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {redacted(message)}", file=sys.stderr)
    sys.exit(code)


def _print_traceback(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the traceback of a fault of the program as Python does, with credentials redacted."""
    print(redacted("".join(format_exception(kind, error, traceback))), end="", file=sys.stderr)
