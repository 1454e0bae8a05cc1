"""The manifests by KubeRay's and Kubernetes' published schemas, and the README's lines by the code that runs them."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from dags.chain import ChainConfig, stages_between
from dags.launch import Launcher
from dags.stages import PUBLISH, STAGES, command
from pipeline.cli import parse
from tests.deploy.trim_crds import POD

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = json.loads(Path(__file__).with_name("ray.io_v1.json").read_text())
KUBERNETES = "1.36"
README = (DEPLOY / "README.md").read_text()


def manifests() -> list[dict[str, Any]]:
    return [doc for path in sorted(DEPLOY.glob("*.yaml")) for doc in yaml.safe_load_all(path.read_text())]


BY_NAME = {doc["metadata"].get("name") or doc["metadata"]["generateName"].rstrip("-"): doc for doc in manifests()}


def pods_of(value: Any, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What stands where a schema marks a pod."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].removeprefix("#/")]
    if schema.get(POD):
        yield value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from pods_of(part, schema.get("properties", {}).get(name, {}))
    elif isinstance(value, list):
        for part in value:
            yield from pods_of(part, schema.get("items", {}))


def check(manifest: dict[str, Any]) -> None:
    """As `kubectl apply --validate=strict` with KubeRay's operator installed."""
    assert manifest["apiVersion"] == "ray.io/v1" and set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    schema = {**SCHEMAS, **SCHEMAS[manifest["kind"]]}
    jsonschema.Draft202012Validator(schema).validate(manifest["spec"])
    for pod in pods_of(manifest["spec"], SCHEMAS[manifest["kind"]]):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_manifest_is_what_the_cluster_accepts(name: str) -> None:
    check(BY_NAME[name])


@pytest.mark.parametrize(
    ("name", "path", "value", "problem"),
    [
        ("jat", "workerGroupSpec", [], "'workerGroupSpec' was unexpected"),
        ("jat", "authOptions.secret", "x", "'secret' was unexpected"),
        ("jat", "authOptions.mode", "password", "'password' is not one of"),
        ("jat", "workerGroupSpecs.0.minReplicas", "1", "is not of type 'integer'"),
        ("jat", "workerGroupSpecs.0.groupName", None, "None is not of type 'string'"),
        ("jat", "headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("jat", "autoscalerOptions.version", "v3", "'v3' is not one of"),
        ("jat", "headGroupSpec.template.spec.containers.0.imag", "x", "'imag' was unexpected"),
        ("jat", "headGroupSpec.template.spec.containers.0.ports.0.containerPort", "x", "'x' is not of type"),
        ("jat", "workerGroupSpecs.1.template.spec.volumes.0.emptyDir.size", "1Gi", "'size' was unexpected"),
        ("jat", "headGroupSpec.template.spec.containers.0.name", ..., "'name' is a required property"),
        ("jat-data", "entryPoint", "x", "'entryPoint' was unexpected"),
        ("jat-data", "entrypointNumCpus", "2", "is not of type 'number'"),
        ("jat-data", "rayClusterSpec", {"headGroupSpec": {}}, "'template' is a required property"),
    ],
)
def test_a_wrong_field_or_type_is_found(name: str, path: str, value: Any, problem: str) -> None:
    manifest = copy.deepcopy(BY_NAME[name])
    *parents, last = [int(word) if word.isdecimal() else word for word in path.split(".")]
    place = manifest["spec"]
    for word in parents:
        place = place[word]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match=problem):
        check(manifest)


def test_what_the_operator_asks_for_beyond_its_schema() -> None:
    cluster = BY_NAME["jat"]["spec"]
    (pin,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert cluster["rayVersion"] == pin
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["maxReplicas"]
        # The second autoscaler replaces pods, so none may restart by itself.
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"
        mounts = {
            mount["name"]: mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
        }
        assert {volume["name"] for volume in group["template"]["spec"]["volumes"]} == set(mounts)
        assert f"JAT_SCRATCH={mounts['scratch']}" in (DEPLOY / "Dockerfile").read_text()
    for name, manifest in BY_NAME.items():
        if manifest["kind"] == "RayJob":
            assert manifest["spec"]["clusterSelector"] == {"ray.io/cluster": "jat"}, name
            assert "backoffLimit" not in manifest["spec"], "not with a cluster that is there"


def test_the_readme_makes_the_secrets_that_the_manifests_name() -> None:
    text = (DEPLOY / "raycluster.yaml").read_text()
    named = set(re.findall(r"secretName: (\S+)", text)) | set(re.findall(r"secretRef:\s+name: (\S+)", text))
    assert named == set(re.findall(r"kubectl create secret generic (\S+)", README)) == {"jat-ray-token", "jat-store"}
    # The key that the operator reads.
    assert "generic jat-ray-token --from-literal=auth_token=" in README


def test_a_rayjob_s_entrypoint_is_a_command_of_ours() -> None:
    words = shlex.split(BY_NAME["jat-data"]["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "dags.chain"]
    config = parse(ChainConfig, argv=words[3:])
    assert [stage.name for stage in stages_between(config.first, config.last)] == ["experts", "collect", "dataset"]
    train = next(stage for stage in STAGES if stage.name == "train")
    expected = command(train, {"out": str(config.out)}, "python")
    assert shlex.split(BY_NAME["jat-train"]["spec"]["entrypoint"]) == expected


def test_the_readme_s_lines_are_those_that_the_scheduler_submits() -> None:
    lines = [shlex.split(line) for line in README.splitlines() if line.startswith("ray job submit")]
    (reserve,) = re.findall(r"^JAT_RAY_RESERVE='(.+)'$", README, re.M)
    environ = {"JAT_RAY_JOBS": "http://head:8265", "JAT_RAY_RESERVE": reserve}
    stages = (*STAGES, PUBLISH)
    assert len(lines) == len(stages)
    for stage, words in zip(stages, lines, strict=True):
        options = {word.removeprefix("--"): after for word, after in pairwise(words) if word != "--"}
        split = words.index("--")
        expected = Launcher(stage, options, environ).words
        assert words[split + 1 :] == command(stage, options, "python") == expected[expected.index("--") + 1 :]
        assert sorted(words[3:split]) == sorted(word for word in expected if word.startswith("--entrypoint-"))
