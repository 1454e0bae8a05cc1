"""The pages: tasks, the episodes of a task, one episode, and the episodes of an evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from collectors.browser import plots
from collectors.browser.catalogue import Catalogue, NotFoundError
from collectors.browser.evaluation import evaluations_of, measurement_of, played_episodes
from collectors.browser.films import Films, key_of
from collectors.browser.guard import LoopbackGuard
from collectors.browser.query import SORTS, Query, parse_dimensions, parse_index, parse_query
from collectors.stored import StoredEpisode
from pipeline.envs.domain import domain_name
from pipeline.envs.task import IMAGE, Task
from pipeline.errors import UserError
from pipeline.pages.figures import domain_colours
from pipeline.pages.page import TEMPLATES as PAGE_TEMPLATES
from pipeline.pages.page import render_page
from pipeline.storage.manifest import TaskManifest

TEMPLATES = Path(__file__).parent / "templates"
MAX_TEXTS = 20  # mission texts shown of an episode
MAX_PLAYED = 2000  # episodes of an evaluation shown of a task


def make_app(place: Path, port: int, temporary: Path, tasks: Sequence[Task] | None = None) -> LoopbackGuard:
    """The application.

    Args:
        place: a dataset, or a run with one; on this disk, on the Hub, or in a store.
        port: of the server, which requests must name.
        temporary: empty folder for films, and for files of a dataset that is elsewhere.
        tasks: the table of tasks; all known ones if None.

    Raises:
        UserError: there is no dataset, or it is damaged.
    """
    pages = Pages(Catalogue(place, tasks, temporary / "downloads"), Films(temporary))
    episode = "/tasks/{task}/{split}/{number}"
    routes = [
        Route("/", pages.tasks),
        Route("/tasks/{task}", pages.episodes),
        Route(episode, pages.episode),
        Route(f"{episode}/film", pages.make_film, methods=["POST"]),
        Route(f"{episode}/replay", pages.replay, methods=["POST"]),
        Route("/films/{key}.mp4", pages.film),
        Route("/evaluation", pages.evaluation),
        Route("/evaluation/{task}", pages.played),
        Route("/evaluation/{task}/{seed}", pages.played_episode),
        Route("/evaluation/{task}/{seed}/{who}.mp4", pages.played_film),
        Route("/browser.css", style),
        Route("/browser.js", script),
    ]
    handlers: dict[Any, Any] = {UserError: pages.refuse, HTTPException: pages.refuse}
    return LoopbackGuard(Starlette(routes=routes, exception_handlers=handlers), port)


def style(_: Request) -> Response:
    """The style sheet of all pages of the project, followed by that of these pages."""
    colours = domain_colours()
    light, dark = ("".join(f"--{name}: {pair[i]}; " for name, pair in colours.items()) for i in (0, 1))
    themes = f":root {{ {light}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
    parts = [(PAGE_TEMPLATES / "page.css").read_text(), themes, (TEMPLATES / "browser.css").read_text()]
    return Response("".join(parts), media_type="text/css")


def script(_: Request) -> Response:
    return Response((TEMPLATES / "browser.js").read_text(), media_type="text/javascript")


class Pages:
    """Answers requests. Functions that are not coroutines run in threads, so a film delays no page.

    Args:
        catalogue: the dataset.
        films: makes films.
    """

    def __init__(self, catalogue: Catalogue, films: Films) -> None:
        self._catalogue, self._films = catalogue, films

    def tasks(self, request: Request) -> Response:
        name = request.query_params.get("name", "").strip()
        manifest = self._catalogue.manifest
        rows = [_task_row(task, info) for task, info in manifest.tasks.items() if name.lower() in task.lower()]
        return self._page("tasks.html.j2", rows=rows, name=name, total=len(manifest.tasks), edits=manifest.edits)

    def episodes(self, request: Request) -> Response:
        task, query = request.path_params["task"], parse_query(request.query_params)
        index = self._catalogue.index(task)
        page = index.page(query)
        return self._page(
            "episodes.html.j2", task=task, query=query.on_page(page.page), page=page, sorts=SORTS,
            all_rows=len(index.table),
        )  # fmt: skip

    def episode(self, request: Request) -> Response:
        task, split, number = self._names(request)
        query = parse_query(request.query_params)
        data, row = self._catalogue.row(task, split, number)
        beside, at = self._beside(request, task, query)
        stored, problem = None, ""
        if row["row"] is not None:
            try:
                stored = self._catalogue.episode(task, data, row)
            except UserError as error:
                problem = str(error)
        words = {name: request.query_params.get(name, plots.SHOWN).strip() for name in ("actions", "observations")}
        panels = [] if stored is None else _panels(stored, words)
        return self._page(
            "episode.html.j2", task=task, split=split, number=number, row=row, query=query, problem=problem,
            stored=stored, panels=panels, height=plots.HEIGHT, width=plots.WIDTH, words=words, beside=beside, at=at,
            texts=_texts(stored), shown=plots.MAX_STEPS, is_image=stored and stored.task.observation == IMAGE,
            is_made=self._films.find(self._key(task, split, number)) is not None, data=data.name,
            command=self._command(task, row["seed"]), files=f"/tasks/{quote(task)}/{split}/{number}",
        )  # fmt: skip

    def make_film(self, request: Request) -> Response:
        names = self._names(request)
        key = self._key(*names)
        film = self._films.make(key, self._stored(*names))
        about = {"frames_per_s": film.frames_per_s, "stride": film.stride, "note": film.note}
        return JSONResponse({"address": f"/films/{key}.mp4", **about})

    def film(self, request: Request) -> Response:
        film = self._films.find(request.path_params["key"])
        if film is None:
            raise NotFoundError("there is no such film; open the page of its episode")
        return FileResponse(film.path, media_type="video/mp4")

    def replay(self, request: Request) -> Response:
        is_equal, text = self._films.replay(self._stored(*self._names(request)), self._catalogue.out)
        return JSONResponse({"equal": is_equal, "text": text})

    def evaluation(self, request: Request) -> Response:
        evaluations = self._evaluations()
        if not evaluations:
            raise NotFoundError(f"nothing is evaluated in {self._catalogue.out}; `jat evaluate` does it")
        of = self._name_of(request, evaluations)
        rows = []
        for name in evaluations[of]:
            played = measurement_of(self._catalogue.out, name, of)
            counted = [result for result in played.episodes if not result.rejected]
            successes = [result.success for result in counted if result.success is not None]
            rows.append({
                "task": name, "episodes": len(counted),
                "return": sum(result.total_reward for result in counted) / len(counted) if counted else None,
                "success": sum(successes) / len(successes) if successes else None,
            })  # fmt: skip
        return self._page("evaluation.html.j2", rows=rows, of=of, others=list(evaluations), suffix=_suffix(of))

    def played(self, request: Request) -> Response:
        task, of, episodes, policy = self._played(request)
        shown = episodes[:MAX_PLAYED]
        return self._page(
            "played.html.j2", task=task, episodes=shown, total=len(episodes), policy=policy, of=of, suffix=_suffix(of)
        )

    def played_episode(self, request: Request) -> Response:
        task, of, episodes, _ = self._played(request)
        seed = parse_index("seed", request.path_params["seed"])
        for at, episode in enumerate(episodes):
            if episode.result.seed == seed:
                beside = [episodes[i].result.seed if 0 <= i < len(episodes) else None for i in (at - 1, at + 1)]
                return self._page(
                    "played_episode.html.j2", task=task, episode=episode, beside=beside, suffix=_suffix(of)
                )
        raise NotFoundError(f"seed {seed} of {task} was not played in the evaluation")

    def played_film(self, request: Request) -> Response:
        _, _, episodes, _ = self._played(request)
        seed, who = parse_index("seed", request.path_params["seed"]), request.path_params["who"]
        for episode in episodes:
            if episode.result.seed == seed and who in episode.films:
                return FileResponse(episode.films[who][1], media_type="video/mp4")
        raise NotFoundError("there is no such film")

    def refuse(self, request: Request, error: Exception) -> Response:
        """The page of an error, or one line of JSON where a script asked."""
        status = error.status_code if isinstance(error, HTTPException) else 404 if _is_missing(error) else 400
        text = f"there is no page {request.url.path[:200]}" if isinstance(error, HTTPException) else str(error)
        if request.method == "POST":
            return JSONResponse({"error": text}, status)
        return self._page("error.html.j2", status, text=text)

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        common = {"dataset": self._catalogue.title, "has_evaluation": bool(self._evaluations())}
        return HTMLResponse(render_page(TEMPLATES / template, **common, **values), status)

    def _names(self, request: Request) -> tuple[str, str, int]:
        names = request.path_params
        return names["task"], names["split"], parse_index("number", names["number"])

    def _key(self, task: str, split: str, number: int) -> str:
        return key_of(self._catalogue.manifest.digest, task, split, number)

    def _stored(self, task: str, split: str, number: int) -> StoredEpisode:
        data, row = self._catalogue.row(task, split, number)
        if row["row"] is None:
            raise UserError(f"the episode was rejected, so there are no steps: {row['rejected']}")
        return self._catalogue.episode(task, data, row)

    def _beside(self, request: Request, task: str, query: Query) -> tuple[list[str | None], int | None]:
        """Addresses of the episodes before and after this one in the list, and its index there, if it is known."""
        text = request.query_params.get("at")
        if text is None:
            return [None, None], None
        at = parse_index("at", text)
        found = self._catalogue.index(task).beside(query, at)
        shown = {name: value for name in ("actions", "observations") if (value := request.query_params.get(name))}
        return [
            found_one and f"/tasks/{quote(task)}/{found_one[1]}/{found_one[2]}{query.address(at=found_one[0], **shown)}"
            for found_one in found
        ], at

    def _evaluations(self) -> dict[str, list[str]]:
        catalogue = self._catalogue
        return evaluations_of(catalogue.out, catalogue.names) if catalogue.is_of_run else {}

    def _name_of(self, request: Request, evaluations: Mapping[str, Any]) -> str:
        """The evaluation that is asked for: the first one by default."""
        of = request.query_params.get("name", next(iter(evaluations), ""))
        if of not in evaluations:
            raise NotFoundError(
                f"there is no evaluation {of[:80]!r}; there are {', '.join(map(_title, evaluations)) or 'none'}"
            )
        return of

    def _played(self, request: Request) -> tuple[str, str, Any, str]:
        """Task, evaluation, episodes, and the agent that played them."""
        task, evaluations = request.path_params["task"], self._evaluations()
        of = self._name_of(request, evaluations)
        if task not in evaluations[of]:
            raise NotFoundError(f"the evaluation has no task {task[:80]!r}")
        catalogue = self._catalogue
        collected = catalogue.manifest.tasks.get(task)  # a task that is not in the dataset can be evaluated
        found = played_episodes(catalogue.out, task, collected.expert_revision if collected else "", of)
        return task, of, found, measurement_of(catalogue.out, task, of).revision

    def _command(self, task: str, seed: int | None) -> str:
        catalogue = self._catalogue
        if seed is None or catalogue.elsewhere:
            return ""
        words = ["jat", "dataset", "replay", "--task", task, "--seed", str(seed), "--out", str(catalogue.out)]
        words += [] if catalogue.is_of_run else ["--dataset", str(catalogue.dataset)]
        return shlex.join(words)


def _suffix(of: str) -> str:
    """What the addresses of an evaluation's pages end with."""
    return f"?name={quote(of)}" if of else ""


def _title(of: str) -> str:
    return of or "the run's own"


def _is_missing(error: Exception) -> bool:
    return isinstance(error, NotFoundError)


def _task_row(name: str, info: TaskManifest) -> dict[str, Any]:
    splits = list(info.splits.values())
    episodes, steps = sum(split.num_episodes for split in splits), sum(split.num_steps for split in splits)
    successes = [split.num_successes for split in splits]
    known = None if None in successes else sum(count for count in successes if count is not None)
    return {
        "name": name, "domain": domain_name(name), "expert": info.expert, "episodes": episodes, "steps": steps,
        "test": info.splits["test"].num_episodes if "test" in info.splits else 0,
        "rejected": sum(split.num_rejected for split in splits),
        "success": known / episodes if known is not None and episodes else None,
        "return": sum(s.mean_return * s.num_episodes for s in splits) / episodes if episodes else None,
        "length": steps / episodes if episodes else None,
    }  # fmt: skip


def _panels(stored: StoredEpisode, words: dict[str, str]) -> list[plots.Panel]:
    sizes = {"actions": stored.task.action.size, "observations": stored.task.observation_shape[0]}
    chosen = {name: parse_dimensions(name, text, sizes[name]) if text else [] for name, text in words.items()}
    return plots.panels_of(stored, chosen["actions"], chosen["observations"])


def _texts(stored: StoredEpisode | None) -> list[tuple[int, str]]:
    """Mission texts of an episode with the step from which on they hold."""
    if stored is None or stored.steps.texts is None:
        return []
    texts = stored.steps.texts.to_pylist()
    changes = [i for i, text in enumerate(texts) if i == 0 or text != texts[i - 1]]
    return [(i, texts[i]) for i in changes[:MAX_TEXTS]]
