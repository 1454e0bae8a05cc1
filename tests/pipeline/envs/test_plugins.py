from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.domain_files import VARIABLE, add_domain_files
from pipeline.envs.domain import RESERVED
from pipeline.envs.registry import all_tasks, domain_named, domain_of, domains, select_tasks
from pipeline.errors import UserError
from pipeline.media.film import pace
from pipeline.pages.figures import SPARE_COLOURS, colour_of, domain_colours
from pipeline.pages.page import TEMPLATES, title

DOMAIN = """
from pipeline.envs.domain import Domain
from pipeline.envs.task import CONTINUOUS, Action, Task


def make_env(task):
    raise RuntimeError("not made here")


def task(name, domain="toys", **changes):
    values = dict(
        name=name, domain=domain, env_id="Toy-v0", jat_env_id="Toy-v0", observation=CONTINUOUS, observation_shape=(3,),
        action=Action("discrete", 2), max_steps=9, success=None, packages=("numpy",), factory=make_env,
    )
    return Task(**(values | changes))


DOMAIN = Domain("toys", "Toys of the attic", (task("toys-ball"), task("toys-kite")), licence="The toys are MIT.",
                colours=("#123456", "#abcdef"), frames_per_s=7)
"""


WITH_PARTS = DOMAIN.replace("Action, Task", "Action, Part, Task")


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the domains and modules of a test."""
    modules, path = set(sys.modules), list(sys.path)
    monkeypatch.setenv(VARIABLE, "")
    domains.cache_clear()
    yield
    domains.cache_clear()
    for name in set(sys.modules) - modules:
        if name.startswith(("attic", "toyshop")):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., None]:
    def write_and_name(text: str, name: str = "attic.py") -> None:
        (tmp_path / name).write_text(text)
        add_domain_files([str(tmp_path / name)])

    return write_and_name


def test_a_file_s_domain_is_found_everywhere_by_name_and_glob(load: Callable[..., None]) -> None:
    load(DOMAIN)
    assert [task.name for task in select_tasks("toys")] == ["toys-ball", "toys-kite"]
    assert [task.name for task in select_tasks("*-kite,mujoco-ant")] == ["mujoco-ant", "toys-kite"]
    assert len(all_tasks()) == 159
    assert domain_of(select_tasks("toys-ball")[0]).licence == "The toys are MIT."
    assert (title("toys"), pace("toys"), colour_of("toys", ["toys"])) == ("Toys of the attic", (2, 7), "#123456")


def test_domains_without_colours_get_different_spare_ones(load: Callable[..., None]) -> None:
    load(
        DOMAIN.replace('colours=("#123456", "#abcdef"), ', "")
        + "\nDOMAINS = [DOMAIN, Domain('kites', 'Kites', (task('kites-red', 'kites'),))]\n"
    )
    colours = domain_colours()
    assert colours["toys"] == SPARE_COLOURS[0] and colours["kites"] == SPARE_COLOURS[1]
    assert colour_of("kites", ["kites", "toys"]) == SPARE_COLOURS[1][0]


def test_the_names_of_colours_are_reserved() -> None:
    variables = set(re.findall(r"--([a-z0-9]+):", (TEMPLATES / "page.css").read_text(encoding="utf-8")))
    assert variables <= set(RESERVED)


def test_a_domain_that_is_not_there_is_called_by_its_name() -> None:
    assert (domain_named("attic").title, title("attic"), pace("attic")) == ("attic", "attic", (2, 20))


def test_an_installed_package_announces_its_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toyshop.py").write_text(DOMAIN + "\nDOMAINS = [DOMAIN]\n")
    info = tmp_path / "toyshop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toyshop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jat.domains]\ntoys = toyshop:DOMAINS\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(select_tasks("toys")) == 2
    (tmp_path / "toyshop.py").write_text("raise OSError('no attic')")
    del sys.modules["toyshop"]
    domains.cache_clear()
    with pytest.raises(UserError, match=r"package toyshop \(jat.domains: toys\) cannot be loaded: OSError: no attic;"):
        all_tasks()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", r"attic.py cannot be loaded: ZeroDivisionError: division by zero; mend it, or leave it out"),
        ("x = 1", r"attic.py defines neither DOMAIN nor DOMAINS"),
        ("DOMAIN = 'toys'", r"attic.py gives a str, expected a Domain"),
        (DOMAIN.replace('"toys", "Toys', '"mujoco", "Toys').replace("toys-", "mujoco-").replace('="toys"', '="mujoco"'),
         r"two domains are called 'mujoco': of this package and of --domain .*attic.py; rename or remove one"),
        (DOMAIN.replace("toys-ball", "ball"), r"task 'ball' has no name of letters, .* starts with toys-"),
        (DOMAIN.replace("toys-ball", "toys-<b>"), r"task 'toys-<b>' has no name of letters"),
        (DOMAIN.replace("toys-ball", "toys-kite"), r"two tasks are called 'toys-kite'"),
        (DOMAIN.replace('domain="toys"', 'domain="toy"'), r"says that its domain is 'toy'"),
        (DOMAIN.replace("#123456", "red;}"), r"the colours of toys are \('red;}', '#abcdef'\)"),
        (WITH_PARTS.replace("max_steps=9", "max_steps=9, parts=(Part('a', 1), Part('b', 1))"),
         r"has parts of \[1, 1\] numbers, expected those of its vector"),
        (WITH_PARTS.replace("max_steps=9", "max_steps=9, parts=(Part('a', 1), Part('a/b', 2))"),
         r"has parts called \['a', 'a/b'\], expected different names"),
        (WITH_PARTS.replace("max_steps=9", "max_steps=9, parts=(Part('a', 3, (4,)),)"),
         r"has a part of integers whose size is not that of its one-hot"),
        (DOMAIN.replace("max_steps=9", "max_steps=0"), r"has a size, max_steps or lockstep below 1"),
        (DOMAIN + "\nDOMAIN = Domain('to ys', 'Toys', DOMAIN.tasks)", r"the domain's name is 'to ys'"),
        (DOMAIN + "\nDOMAIN = Domain('ink', 'Ink', DOMAIN.tasks)", r"name is 'ink', which is taken"),
        (DOMAIN + "\nDOMAIN = Domain('toys', 'Toys')", r"toys has no tasks"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_domain_is_said_in_one_line(load: Callable[..., None], text: str, message: str) -> None:
    load(text)
    with pytest.raises(UserError, match=message) as error:
        all_tasks()
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_has_a_module_s_name_is_refused(load: Callable[..., None]) -> None:
    with pytest.raises(UserError, match=r"--domain nowhere.py is no file; give a Python file that defines DOMAIN"):
        add_domain_files(["nowhere.py"])
    load(DOMAIN, "json.py")
    with pytest.raises(UserError, match=r"has the name of another module, .*rename the file, .* json_domain.py"):
        all_tasks()


def test_the_command_takes_a_file_and_lists_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "attic.py").write_text(DOMAIN)
    command = [sys.executable, "-m", "pipeline.envs.registry", "--domain", str(tmp_path / "attic.py"), "--task", "toys"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "toys-ball" in result.stdout and "2 tasks" in result.stdout
