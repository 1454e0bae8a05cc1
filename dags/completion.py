"""Shell completion of ``jat``: prints a script of its sub-commands with their options.

    jat completion bash > ~/.local/share/bash-completion/completions/jat

The script has all words in it, so that completing starts no Python; print it again after an update.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import shtab
import tyro

from dags.cli import COMMANDS, WITHOUT_GROUP, Command
from pipeline.cli import options_of, parse, run, takes_tasks
from pipeline.tables import FORMATS


@dataclass(frozen=True)
class CompletionConfig:
    """Print the completion script of a shell."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell that is to read it."""


def parser_of(command: Command) -> argparse.ArgumentParser:
    """A parser with the options of a command, without defaults; with none if a package of the command is missing."""
    parser = argparse.ArgumentParser(prog=f"jat {command.name}", conflict_handler="resolve")
    try:
        options = options_of(command.module)
    except ModuleNotFoundError:
        return parser
    _add_options(parser, options.config_type)
    if options.recipes:
        parser.add_argument("--recipe", choices=["default", *options.recipes])
    if options.prints_tables:
        parser.add_argument("--format", choices=FORMATS)
    if takes_tasks(options.config_type):
        parser.add_argument("--domain").complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def _add_options(parser: argparse.ArgumentParser, config_type: Any, prefix: str = "") -> None:
    hints = typing.get_type_hints(config_type, include_extras=True)
    for field in dataclasses.fields(config_type):
        kinds = list(_members(hints[field.name]))
        renamed = next((kind.name for kind in kinds if isinstance(getattr(kind, "name", None), str)), "")
        name = prefix + (renamed or field.name.replace("_", "-"))
        nested = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        for kind in nested:  # the options of every class that a recipe may choose
            _add_options(parser, kind, f"{name}.")
        if nested:
            continue
        if bool in kinds:
            parser.add_argument(f"--{name}", f"--no-{name}", action="store_true")
            continue
        words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
        is_positional = tyro.conf.Positional[int].__metadata__[0] in kinds  # type: ignore[attr-defined]
        option = parser.add_argument(name if is_positional else f"--{name}", choices=words or None)
        if Path in kinds:
            option.complete = shtab.FILE  # type: ignore[attr-defined]


def _members(hint: Any) -> Iterator[Any]:
    """The types of a union, and what a type is annotated with."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _members(member)
    elif typing.get_origin(hint) is Annotated:
        yield from _members(typing.get_args(hint)[0])
        yield from hint.__metadata__
    else:
        yield hint


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``jat`` with all sub-commands, of which completion is made; it parses nothing."""
    parser = argparse.ArgumentParser(prog="jat")
    parser.add_argument("--version", action="store_true")
    words = parser.add_subparsers()
    groups: dict[str, Any] = {}
    short = {full: name for name, full in WITHOUT_GROUP.items()}
    for command in COMMANDS.values():
        options = parser_of(command)
        group, _, word = command.name.rpartition(" ")
        if group and group not in groups:
            of_group = words.choices.get(group) or words.add_parser(group, help=f"{group} commands")
            groups[group] = of_group.add_subparsers()
        places = [(groups[group] if group else words, word)]
        if command.name in short:
            places.append((words, short[command.name]))
        for place, name in places:
            place.add_parser(name, parents=[options], add_help=False, help=command.summary.replace("`", ""))
    return parser


def main() -> None:
    config = parse(CompletionConfig)
    sys.stdout.write(shtab.complete(make_parser(), config.shell))


if __name__ == "__main__":
    run("dags.completion")
