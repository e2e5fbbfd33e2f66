"""Checks of the two files that an operator writes: the one for `ray up` and the Serve configuration."""

import importlib
import logging
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from rayapp.preflight.findings import Finding

PLACEHOLDERS: Final = re.compile(r"\b(AMI_UBUNTU_2404(?:_GPU)?|SECURITY_GROUP|FILE_SYSTEM|GCS_REDIS)\b")
"""What cluster.yaml leaves to be set."""
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """What one deployment may ask for."""

    name: str
    fewest: int
    most: int
    cpus: float
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Room:
    """Nodes of one kind: how many there may be, each with so many CPUs."""

    most: int
    cpus: float
    labels: dict[str, str]


def read_yaml(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """The file's mapping, or what is wrong with it; its check is the caller's to name."""
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        return {}, [Finding("", str(path), f"it can't be read ({error.strerror})", "Name a file that is there")]
    except yaml.YAMLError as error:
        return {}, [Finding("", str(path), f"it is no YAML ({' '.join(str(error).split())})", "Mend that line")]
    if not isinstance(value, dict):
        return {}, [Finding("", str(path), "it holds no settings", "Start from the file that comes with rayapp")]
    return value, []


def check_cluster_file(path: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """`cluster file`: Ray's validator takes it, its mounts are there, nothing is left to be set."""
    problem = _ray_refuses(config)
    if problem is not None:
        yield Finding("cluster file", str(path), f"Ray does not take it: {problem}", "Mend it and ask again")
        return
    for left in sorted(set(PLACEHOLDERS.findall(yaml.safe_dump(config)))):
        yield Finding(
            "cluster file", str(path), f"{left} is left to be set", "The head of the file says how to look it up"
        )
    for source in (config.get("file_mounts") or {}).values():
        if not Path(source).expanduser().exists():
            fix = "`make dist` makes it" if source == "dist" else "`ray get-auth-token --generate` makes a token"
            yield Finding("cluster file", str(path), f"{source}, which goes to every node, does not exist", fix)
    commands = "\n".join(config.get("head_start_ray_commands") or [])
    if "RAY_REDIS_ADDRESS=" not in commands:
        yield from no_redis_for_the_head(str(path))


def no_redis_for_the_head(where: str) -> Iterator[Finding]:
    """`head`: its state is nowhere but in its memory."""
    yield Finding(
        "head",
        where,
        "the cluster's state is in the head's memory alone, so its death ends every node",
        "Name a Redis of its own in RAY_REDIS_ADDRESS where the head starts",
        "warning",
    )


def check_serve_file(path: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """`serve file`: Ray's schema, the keys that it takes in silence, the application's own arguments."""
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        for row in error.errors():
            place = ".".join(map(str, row["loc"]))
            yield Finding("serve file", str(path), f"Ray does not take {place}: {row['msg']}", "Mend it and ask again")
        return
    for key in unknown_keys(config, ServeDeploySchema):
        yield Finding(
            "serve file", str(path), f"nothing knows {key}, and Ray would pass over it in silence", "Mend its name"
        )
    for application in config["applications"]:
        yield from _check_arguments(path, application)


def unknown_keys(value: Any, kind: Any, place: str = "") -> Iterator[str]:
    """Keys of a mapping, at any depth, that the Pydantic model `kind` has no field for."""
    models = [part for part in (kind, *_parts(kind)) if isinstance(part, type) and issubclass(part, BaseModel)]
    if isinstance(value, list):
        for i, item in enumerate(value):
            name = item["name"] if isinstance(item, dict) and "name" in item else i
            yield from unknown_keys(item, kind, f"{place}[{name}]")
    elif isinstance(value, dict) and models:
        (model,) = models[:1]
        for key, inner in value.items():
            full = f"{place}.{key}" if place else str(key)
            if key not in model.model_fields:
                yield full
            else:
                yield from unknown_keys(inner, model.model_fields[key].annotation, full)


def check_store_choice(where: str, store_url: str | None, nodes: int) -> Iterator[Finding]:
    """`store`: LMDB is a file of one machine."""
    if nodes > 1 and (store_url is None or store_url.startswith("lmdb:")):
        yield Finding(
            "store",
            where,
            f"{nodes} nodes would share an LMDB, which is for one machine; events would be lost",
            "Name a Redis or Valkey in `store` of the application's arguments",
        )


def asked(config: dict[str, Any]) -> list[Asked]:
    """What the deployments of a Serve configuration may ask for; stages inside the ingress ask for nothing."""
    found = []
    for application in config.get("applications") or []:
        arguments = application.get("args") or {}
        apart = arguments.get("apart") or {}
        rows = [(d["name"], d) for d in application.get("deployments") or []]
        rows += [(name, options) for name, options in apart.items() if name not in (arguments.get("inline") or [])]
        for name, options in rows:
            scaling, actor = options.get("autoscaling_config") or {}, options.get("ray_actor_options") or {}
            fixed = options.get("num_replicas") if isinstance(options.get("num_replicas"), int) else 1
            few, many = scaling.get("min_replicas", fixed), scaling.get("max_replicas", fixed)
            found.append(Asked(name, few, many, actor.get("num_cpus", 1), dict(actor.get("label_selector") or {})))
    return found


def rooms(cluster: dict[str, Any]) -> list[Room]:
    """What a file for `ray up` can bring up. A `local` cluster says it in the workers' start command."""
    if types := cluster.get("available_node_types"):
        most = int(cluster.get("max_workers", 2))
        head = str(cluster.get("head_node_type"))
        return [
            Room(1 if name == head else min(int(t.get("max_workers", most)), most), *_size(t))
            for name, t in types.items()
        ]
    command = " ".join(cluster.get("worker_start_ray_commands") or [])
    cpus = re.search(r"--num-cpus[= ](\d+)", command)
    labels = re.search(r"--labels[= ](\S+)", command)
    pairs = dict(pair.split("=", 1) for pair in labels[1].strip("\"'").split(",")) if labels else {}
    workers = (cluster.get("provider") or {}).get("worker_ips") or []
    return [Room(len(workers), float(cpus[1]) if cpus else 0.0, pairs)]


def check_capacity(where: str, wanted: list[Asked], there: list[Room]) -> Iterator[Finding]:
    """`capacity`: the CPUs of all replicas, at the fewest and at the most, by the labels that they ask for."""
    for number, severity, word in (("fewest", "error", "start with"), ("most", "warning", "scale to")):
        groups: dict[frozenset[tuple[str, str]], float] = {}
        for row in wanted:
            key = frozenset(row.labels.items())
            groups[key] = groups.get(key, 0.0) + getattr(row, number) * row.cpus
        for labels, cpus in groups.items():
            have = sum(room.most * room.cpus for room in there if labels <= set(room.labels.items()))
            if cpus > have:
                nodes = " with " + ", ".join(f"{name}={value}" for name, value in sorted(labels)) if labels else ""
                yield Finding(
                    "capacity",
                    where,
                    f"replicas {word} {cpus:g} CPUs, and nodes{nodes} have {have:g}",
                    "Add nodes, or lower `max_replicas` in the Serve configuration",
                    "error" if severity == "error" else "warning",
                )
                break


def _size(node_type: dict[str, Any]) -> tuple[float, dict[str, str]]:
    return float((node_type.get("resources") or {}).get("CPU", 0)), dict(node_type.get("labels") or {})


def _parts(kind: Any) -> Iterable[Any]:
    for part in typing.get_args(kind):
        yield part
        yield from _parts(part)


def _check_arguments(path: Path, application: dict[str, Any]) -> Iterator[Finding]:
    module, _, name = str(application["import_path"]).partition(":")
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        yield Finding("serve file", str(path), f"{module}:{name} can't be imported ({error})", "Mend `import_path`")
        return
    model = typing.get_type_hints(build).get("args")
    if isinstance(model, type) and issubclass(model, BaseModel):
        try:
            model.model_validate(application.get("args") or {})
        except ValidationError as error:
            for row in error.errors():
                place = ".".join(map(str, row["loc"]))
                yield Finding("serve file", str(path), f"the argument {place} is wrong: {row['msg']}", "Mend it")


def _ray_refuses(config: dict[str, Any]) -> str | None:
    """Why Ray's own validator refuses a file for `ray up`, in its words."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)  # it tells what it fills in
    try:
        validate_config(prepare_config(config))
    except (Exception, SystemExit) as error:  # it raises whatever it likes
        return getattr(error, "message", "") or " ".join(str(error).split())[:300] or type(error).__name__
    return None
