"""Make ``ray.io_v1.json``, the schemas that the manifests are tested with, from KubeRay's own.

    python -m tests.deploy.trim_crds v1.7.0 ray.io_rayclusters.yaml ray.io_rayjobs.yaml

The files are in `helm-chart/kuberay-operator/crds/` of github.com/ray-project/kuberay (Apache-2.0) and have megabytes,
nearly all of them Kubernetes' own pods, written out at every place. Kept is what is KubeRay's: types, enumerations,
ranges and required fields of every field of the two specs but these:

- pods, whose place is marked with ``POD``: the tests check them with the schemas of Kubernetes itself;
- what no manifest here has: see ``LEFT_OUT``. Using one of them fails the test, and means to trim anew;
- descriptions and status.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

POD = "x-pod-template"
PODS = ("template", "submitterPodTemplate")
LEFT_OUT = ("gcsFaultToleranceOptions", "headService", "historyServerOptions", "networkPolicy", "deletionStrategy")


def trimmed(schema: Any) -> Any:
    """A schema without descriptions, with pods marked, and closed: a field that it does not name is an error."""
    if isinstance(schema, list):
        return [trimmed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: trimmed(value) for key, value in schema.items() if key not in ("properties", "description")}
    if "properties" in schema:
        kept["properties"] = {
            name: {"type": "object", POD: True} if name in PODS else trimmed(value)
            for name, value in schema["properties"].items()
            if name not in LEFT_OUT
        }
        kept["additionalProperties"] = False
    return kept


def main(version: str, *files: str) -> None:
    schemas = {}
    for file in files:
        crd = yaml.safe_load(Path(file).read_text())
        (served,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        spec = served["schema"]["openAPIV3Schema"]["properties"]["spec"]
        schemas[crd["spec"]["names"]["kind"]] = trimmed(spec)
    # A RayJob's cluster has the same fields.
    assert schemas["RayJob"]["properties"]["rayClusterSpec"]["properties"] == schemas["RayCluster"]["properties"]
    schemas["RayJob"]["properties"]["rayClusterSpec"] = {"$ref": "#/RayCluster"}
    about = f"Trimmed by tests/deploy/trim_crds.py from KubeRay {version}, github.com/ray-project/kuberay, Apache-2.0"
    text = json.dumps({"about": about, **schemas}, indent=1, sort_keys=True)
    Path(__file__).with_name("ray.io_v1.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
