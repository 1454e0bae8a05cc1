"""Open a LeRobotDataset with LeRobot's own loader and print what it gives, as JSON; run by the tests as a program.

PYTHONPATH=.venv/lerobot python lerobot_loader.py FOLDER
"""

import json
import sys
import types

# The index's torchvision is built for CUDA and cannot register its operators, which the loader does not use.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

dataset = LeRobotDataset("any/name", root=sys.argv[1], video_backend="pyav")
meta = dataset.meta
items = [dataset[index] for index in range(len(dataset))]
(state,) = [key for key in items[0] if key.startswith("observation")]
delta = {"action": [0.0, 1 / meta.fps]}
windows = LeRobotDataset("any/name", root=sys.argv[1], delta_timestamps=delta, video_backend="pyav")
second = LeRobotDataset("any/name", root=sys.argv[1], episodes=[1], video_backend="pyav")
found = {
    "episodes": meta.total_episodes,
    "frames": len(dataset),
    "fps": meta.fps,
    "state": [item[state].numpy().tolist() for item in items],
    "action": [item["action"].numpy().tolist() for item in items],
    "reward": [item["next.reward"].item() for item in items],
    "done": [item["next.done"].item() for item in items],
    "task": [item["task"] for item in items],
    "window": list(windows[0]["action"].shape),
    "mean": meta.stats[state]["mean"].tolist(),
    "std": meta.stats[state]["std"].tolist(),
    "second": [
        i["index"].item() for i in LeRobotDataset("any/name", root=sys.argv[1], episodes=[1], video_backend="pyav")
    ],
}
sys.stdout.write(json.dumps(found))
