"""How every command reads its options: three layers, default < recipe < flag, into one frozen dataclass.

A recipe is a function that returns a whole config; ``--recipe NAME`` picks one and the other flags override its
fields. The result is saved as JSON beside what the command made.
"""

from __future__ import annotations

import argparse
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

from pipeline.errors import JobsFailedError, UserError, how_to_install
from pipeline.files import explain_store_error, location, store_errors
from pipeline.secrets import RedactingFormatter, check_no_credentials, redacted
from pipeline.stopping import INTERRUPTED_CODE, STOPPED_CODE, stop_signals
from pipeline.tables import JSON, TEXT, TSV, choose_format
from pipeline.text import parse_count

ConfigT = TypeVar("ConfigT")

# Names of the loggers that `LOG_LEVEL` is about.
LOGGERS = ("pipeline", "experts", "collectors", "trainer", "dags", "progress")


def parse(
    config_type: type[ConfigT],
    recipes: Mapping[str, Callable[[], ConfigT]] | None = None,
    argv: Sequence[str] | None = None,
    prints_tables: bool = False,
) -> ConfigT:
    """Config from the command line.

    Args:
        config_type: a frozen dataclass; the docstring under each field becomes its help, units included.
        recipes: named starting points, chosen by ``--recipe``; ``default`` is always one, the plain dataclass,
            and what is taken without ``--recipe``.
        argv: arguments without the program name; ``sys.argv[1:]`` if None.
        prints_tables: whether the command prints tables, so that it takes ``--format`` (``pipeline/tables.py``).

    Raises:
        UserError: an unknown recipe, or an unknown format.
        SystemExit: code 2 for an unknown or malformed flag, 0 after ``--help``.
    """
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)
    for word in arguments:
        check_no_credentials(word)  # before anything repeats it
    recipes = {"default": config_type, **(recipes or {})}
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--recipe", default="default")
    if prints_tables:
        before.add_argument("--format", default=TEXT)
    chosen, rest = before.parse_known_args(arguments)
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
        description += f"\n\n--format NAME: of what is printed: {TEXT} for people, {JSON} or {TSV} for programs."
    # Where a part may be one of several classes, it is of the recipe's class.
    config = (tyro.conf.AvoidSubcommands,)
    options: dict[str, Any] = {"description": description, "registry": registry, "config": config}
    if chosen.recipe == "default":
        return tyro.cli(config_type, args=rest, **options)
    return tyro.cli(config_type, args=rest, default=recipes[chosen.recipe](), **options)


def by_name(number: type[int] | type[float]) -> Any:
    """Makes a dict of numbers one flag, ``--flag NAME NUMBER NAME NUMBER``, which replaces the recipe's whole dict.

    For ``Annotated[dict[str, float], by_name(float)]``. Left to itself, tyro would make each key of the recipe's a flag
    and allow no other.
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
    """Refuse a config whose fields ``names`` are not all 1 or more; ``prefix`` is that of a nested config's flags.

    Raises:
        UserError: names the flag, its value and what is allowed.
    """
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise UserError(f"--{prefix}{name.replace('_', '-')} is {value}; it must be at least 1")


def configure_logging(level: int | str) -> None:
    """Log to stderr, our own packages from ``level`` on, the others' warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)


def run(module: str, program: str | None = None) -> None:
    """Run ``main`` of a module as a command: log to stderr, turn an error people can act on into one line.

    The module is imported by its name although ``python -m`` has just executed it as ``__main__``: workers can
    only unpickle functions and classes of modules they can import.

    Exit codes: 2 for bad input, 1 for failed jobs, 130 after an interrupt, 143 after SIGTERM.

    Args:
        module: has a ``main`` without arguments, which reads ``sys.argv``.
        program: what help and errors call the command, such as ``jat collect``; ``python -m MODULE`` if None.
    """
    sys.argv[0] = program or f"python -m {module}"
    configure_logging(os.environ.get("LOG_LEVEL", "INFO"))
    # Threads of a matrix product wait for each other. Awake they take the cores from whoever shares them, and where
    # cores are shared a training step then takes ten times as long. Read when torch is imported.
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
            raise  # ours: a fault of the program
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
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not change the code while Python ends
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
    """For faults of the program, as Python prints them, without credentials."""
    print(redacted("".join(format_exception(kind, error, traceback))), end="", file=sys.stderr)
