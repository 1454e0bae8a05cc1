"""A Hub of models on loopback that speaks the few requests of a download, and small repositories for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from tests.web import Pages, served


def make_sample_factory(folder: Path, observations: int = 11, actions: int = 3) -> Path:
    """A small checkpoint folder of Sample Factory; its sizes are the hopper's unless told otherwise."""
    (folder / "checkpoint_p0").mkdir(parents=True)
    config = {
        "use_rnn": False, "actor_critic_share_weights": True, "encoder_mlp_layers": [8], "decoder_mlp_layers": [],
        "adaptive_stddev": False, "normalize_input": False, "obs_subtract_mean": 0.0, "obs_scale": 1.0,
        "continuous_tanh_scale": 0.0, "nonlinearity": "tanh",
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    model = {
        "encoder.encoders.obs.mlp_head.0.weight": torch.full((8, observations), 0.1),
        "encoder.encoders.obs.mlp_head.0.bias": torch.zeros(8),
        "action_parameterization.distribution_linear.weight": torch.full((actions, 8), 0.2),
        "action_parameterization.distribution_linear.bias": torch.zeros(actions),
        "action_parameterization.learned_stddev": torch.zeros(actions),
    }
    torch.save({"model": model}, folder / "checkpoint_p0" / "best_000000007_1000_reward_3.5.pth")
    return folder


@dataclass(frozen=True)
class FakeHub:
    """The paths that were asked for, and the names of repositories whose checkpoints do not arrive for now."""

    address: str
    asked: list[str]
    held: set[str] = field(default_factory=set)


@contextmanager
def serve_models(repositories: dict[str, dict[str, Path]]) -> Iterator[FakeHub]:
    """Repositories by name, each a folder per commit; ``main`` is the last commit, ``v1`` the first."""
    asked: list[str] = []
    held: set[str] = set()

    class Handler(Pages):
        protocol_version = "HTTP/1.1"

        def page(self) -> None:
            asked.append(unquote(urlsplit(self.path).path))
            parts = asked[-1].strip("/").split("/")
            is_api = parts[:2] == ["api", "models"]
            parts = parts[2:] if is_api else parts
            name, rest = "/".join(parts[:2]), parts[2:]
            if name == "broken/down":
                return self.answer(500, b"")
            if name == "broken/page":
                return self.answer(200, b"<html>Please log in to this network</html>")
            if name not in repositories:
                # The Hub does not tell strangers whether a private repository exists.
                return self.answer(401, b"", **{"X-Error-Code": "RepoNotFound"})
            commits = repositories[name]
            revision = rest[1] if len(rest) > 1 else "main"
            commit = {"main": list(commits)[-1], "v1": next(iter(commits))}.get(revision, revision)
            if commit not in commits:
                return self.answer(404, b"", **{"X-Error-Code": "RevisionNotFound"})
            folder = commits[commit]
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            names = [str(path.relative_to(folder)) for path in files]
            if not is_api:
                path = folder / "/".join(rest[2:])
                while name in held and path.suffix == ".pth":
                    time.sleep(0.02)
                tag = f'"{commit[:8]}-{path.name}"'
                return self.answer(200, path.read_bytes(), **{"ETag": tag, "X-Repo-Commit": commit})
            if rest[:1] == ["tree"]:
                return self.json(
                    [
                        {"type": "file", "path": name, "size": path.stat().st_size, "oid": f"{i:040x}"}
                        for i, (name, path) in enumerate(zip(names, files, strict=True))
                    ]
                )
            return self.json({"id": name, "sha": commit, "siblings": [{"rfilename": name} for name in names]})

        def json(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    with served(Handler) as address:
        yield FakeHub(address, asked, held)
