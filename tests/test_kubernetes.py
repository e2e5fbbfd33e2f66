"""The manifests for Kubernetes: valid, without root, and of one mind with the files for `ray up`."""

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rayapp.cli.main import cli
from rayapp.preflight.files import asked

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deployments/kubernetes").glob("*.yaml"))
MANIFESTS = [value for path in FILES for value in yaml.safe_load_all(path.read_text())]
KUBERAY = [value for value in MANIFESTS if value["apiVersion"] == "ray.io/v1"]
CORE = [value for value in MANIFESTS if value["apiVersion"] != "ray.io/v1"]


def name_of(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def closed(schema: Any) -> Any:
    """The schema, refusing fields that it does not list, as an API server that prunes them does in silence."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
    return made


@cache
def kuberay_schemas() -> dict[str, Any]:
    """Of RayCluster, RayService and RayJob."""
    schemas: dict[str, Any] = json.loads((ROOT / "tests/data/kuberay_schemas.json").read_text())["schemas"]
    for schema in schemas.values():
        schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    return schemas


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod's specification in a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


@pytest.mark.parametrize("manifest", KUBERAY, ids=name_of)
def test_kuberay_takes_them(manifest: dict[str, Any]) -> None:
    schema = closed(kuberay_schemas()[manifest["kind"]])
    jsonschema.Draft202012Validator(schema).validate(manifest)
    wrong = json.loads(json.dumps(manifest))
    wrong["spec"]["rayClusterConfigs"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayClusterConfigs"):
        jsonschema.Draft202012Validator(schema).validate(wrong)


@pytest.mark.parametrize("manifest", CORE, ids=name_of)
def test_kubernetes_takes_them(manifest: dict[str, Any]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    kubernetes.validate(manifest, kubernetes.latest_version(), strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_pods_are_whole_and_run_without_root(manifest: dict[str, Any]) -> None:
    for pod in pods(manifest):
        safe = pod["securityContext"]
        assert safe["runAsNonRoot"] is True
        assert safe["runAsUser"] > 0
        assert safe["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not container["image"].endswith(":latest")
            assert container["resources"]["limits"]["memory"]
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            if "rayapp" in container["image"]:
                assert {"/tmp", "/dev/shm", "/home/ray"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    kubernetes = pytest.importorskip("kubernetes_validate")
    for pod in pods(manifest):  # KubeRay's own schema was cut short where Kubernetes' begins
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
        kubernetes.validate(whole, kubernetes.latest_version(), strict=True)


def test_the_service_runs_the_configuration_of_production() -> None:
    (service,) = [value for value in KUBERAY if value["kind"] == "RayService"]
    found = yaml.safe_load(service["spec"]["serveConfigV2"])
    wanted = yaml.safe_load((ROOT / "deployments/production.yaml").read_text())
    wanted["applications"][0]["args"]["store"] = "redis://rayapp-events:6379/0"
    assert found == wanted
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    cpus = group["maxReplicas"] * int(group["rayStartParams"]["num-cpus"])
    assert cpus >= sum(row.most * row.cpus for row in asked(wanted))
    (labels,) = {tuple(row.labels.items()) for row in asked(wanted)}
    assert group["rayStartParams"]["labels"] == ",".join(f"{name}={value}" for name, value in labels)
    assert group["minReplicas"] >= 2


def test_a_head_may_die_and_ray_asks_for_a_token() -> None:
    services = {value["metadata"]["name"] for value in CORE if value["kind"] == "Service"}
    clusters = [
        value["spec"].get("rayClusterConfig") or value["spec"] for value in KUBERAY if "Job" not in value["kind"]
    ]
    assert len({cluster["gcsFaultToleranceOptions"]["externalStorageNamespace"] for cluster in clusters}) == 2
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token"}
        redis, _ = cluster["gcsFaultToleranceOptions"]["redisAddress"].split(":")
        assert redis in services - {"rayapp-events"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    events, cluster_state = (value for value in CORE if value["kind"] == "StatefulSet")
    (text,) = events["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--appendfsync always" in text
    assert "noeviction" in text
    assert events["metadata"]["name"] != cluster_state["metadata"]["name"]


def test_jobs_run_commands_that_exist_and_know_which_exit_codes_are_no_failures() -> None:
    lines = [value["spec"]["entrypoint"] for value in KUBERAY if value["kind"] == "RayJob"]
    for job in (value for value in CORE if value["kind"] == "CronJob"):
        spec = job["spec"]["jobTemplate"]["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        command = [*container["command"], *container["args"]]
        lines.append(re.sub(r"\$\([^)]*\)", "2026-05-03", command[-1]) if command[0] == "sh" else shlex.join(command))
        if "retrain" in lines[-1]:
            (rule,) = spec["podFailurePolicy"]["rules"]
            assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [4, 5]}
            assert spec["template"]["spec"]["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    for line in lines:
        program, name, *arguments = shlex.split(line)
        assert program == "rayapp"
        cli.commands[name].make_context(name, list(arguments))
        assert name != "retrain" or line not in lines[:2] or "--exit-zero" in arguments
    assert len(lines) == 4
