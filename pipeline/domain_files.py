"""Code of the user's own: how the names of files with domains, and of functions, reach every process of a run.

``--domain FILE`` and the environment variable ``JAT_DOMAINS`` (``os.pathsep`` between several files) name them. The
variable is inherited by every process that this one starts. ``pipeline/envs/plugins.py`` imports the files, each by its
own name with its folder on the module search path, so that functions defined in it can be sent to workers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import UserError

VARIABLE = "JAT_DOMAINS"
FUNCTIONS = "JAT_FUNCTIONS"  # of functions that may be called as experts, see experts/functions.py


def domain_files() -> list[str]:
    """Return the named files."""
    return [file for file in os.environ.get(VARIABLE, "").split(os.pathsep) if file]


def add_domain_files(files: Iterable[str]) -> None:
    """Name more files, for this process and for those that it starts.

    Raises:
        UserError: a file does not exist.
    """
    paths = domain_files()
    for file in files:
        path = str(Path(file).absolute())
        if not Path(path).is_file():
            raise UserError(f"--domain {file} is no file; give a Python file that defines DOMAIN or DOMAINS")
        if path not in paths:
            paths.append(path)
    if paths:
        os.environ[VARIABLE] = os.pathsep.join(paths)


def add_to_search_path() -> None:
    """Put the files' folders on the module search path, as a worker needs it to receive tasks defined in them."""
    for file in domain_files():
        folder = str(Path(file).parent)
        if folder not in sys.path:
            sys.path.append(folder)


def variables_for_others(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables that name the user's code, for processes that do not inherit those of this one."""
    return {name: environ[name] for name in (VARIABLE, FUNCTIONS) if environ.get(name)}
