"""Puts the checks together: before `ray up`, on a running cluster, and before `rayapp serve` on one machine."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from rayapp.contracts.errors import RayappError
from rayapp.launch.spread import joined
from rayapp.preflight import files, node_checks
from rayapp.preflight.findings import Finding, Report
from rayapp.preflight.node import look
from rayapp.registry.aliases import read_champion
from rayapp.root.facts import read_root
from rayapp.serving.keys import Keys
from rayapp.store.address import full_url, resolve

HAPROXY_PORTS: Final = (8404, 8500, 9101)
"""Metrics, statistics and Serve's own proxy, on every node of a cluster."""


def before_up(cluster_path: Path, serve_path: Path) -> Report:
    """On the operator's laptop: the two files, whether they fit each other, and the token."""
    report = Report()
    cluster, problems = files.read_yaml(cluster_path)
    problems = problems or list(files.check_cluster_file(cluster_path, cluster))
    report.add({"cluster file", "head"}, _named("cluster file", problems))
    serve = _serve(report, serve_path)
    if cluster and serve:
        rooms = files.rooms(cluster)
        report.add({"capacity"}, files.check_capacity(str(cluster_path), files.asked(serve), rooms))
        workers = sum(room.most for room in rooms)
        report.add({"store"}, files.check_store_choice(str(serve_path), arguments(serve).get("store"), workers))
    token = Path("~/.ray/auth_token").expanduser()
    mode = token.stat().st_mode & 0o777 if token.exists() else None
    report.add({"token"}, node_checks.of_token(mode, "this machine"))
    return report


def on_cluster(serve_path: Path) -> Report:
    """On the head of a running cluster: everything that the graph needs, on every node.

    Raises:
        GraphError: this machine is no node of a cluster.
    """
    from rayapp.preflight.running import graph_runs, look_at_cluster

    report = Report()
    serve = _serve(report, serve_path)
    if not serve:
        return report
    settings = arguments(serve)
    root, store_url = str(settings.get("root", "")), settings.get("store")
    shared = full_url(Path(root), store_url) if store_url else None  # with the environment's password
    with joined("preflight"):
        ports = () if graph_runs() else (int(serve.get("http_options", {}).get("port", 8000)), *HAPROXY_PORTS)
        found = look_at_cluster(root, shared, ports)
    nodes = found.nodes
    report.add({"versions", "profile", "token"}, node_checks.of_cluster(nodes))
    report.add({"haproxy", "shared memory", "file handles", "disk", "ports"}, node_checks.of_machine(nodes))
    report.add({"root"}, node_checks.of_root(nodes, root))
    report.add({"clocks"}, node_checks.of_clocks(found.clocks))
    report.add({"capacity"}, files.check_capacity("the cluster", files.asked(serve), found.rooms))
    report.add({"capacity"}, _silent(found.silent))
    report.add({"store"}, files.check_store_choice(str(serve_path), store_url, len(nodes)))
    report.add({"store"}, node_checks.of_store(nodes))
    report.add({"head"}, [] if found.head_state else files.no_redis_for_the_head("the head"))
    _of_root(report, Path(root), shared, keys=bool(settings.get("keys", True)))
    return report


def on_machine(root: Path, store_url: str | None, port: int, keys: bool) -> Report:
    """On one machine, before `rayapp serve`."""
    report = Report()
    facts = look("this machine", str(root), None, None, (port,))
    report.add({"haproxy", "shared memory", "file handles", "disk", "ports"}, node_checks.of_machine([facts]))
    report.add({"root"}, node_checks.of_root([facts], str(root)))
    url = None
    try:
        url = resolve(root, store_url)
        report.add({"store"}, [])
    except RayappError as error:
        report.add({"store"}, [Finding("store", str(root), str(error), "Mend that first")])
    _of_root(report, root, url, keys)
    return report


def arguments(serve: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the (one) application of a Serve configuration."""
    applications = serve.get("applications") or [{}]
    return dict(applications[0].get("args") or {})


def _serve(report: Report, path: Path) -> dict[str, Any]:
    """The Serve configuration, checked; empty where it can't be used."""
    serve, problems = files.read_yaml(path)
    problems = problems or list(files.check_serve_file(path, serve))
    report.add({"serve file"}, _named("serve file", problems))
    return {} if any(problem.problem.startswith("Ray does not take") for problem in problems) else serve


def _of_root(report: Report, root: Path, store_url: str | None, keys: bool) -> None:
    """`model`, `keys`, and the durability of a Redis."""
    report.add({"model"}, _refused("model", root, lambda: (read_root(root), read_champion(root))))
    if keys:
        report.add({"keys"}, _refused("keys", root, lambda: None))
        if not Keys.load(root).rows:
            fix = f"Make one before you deploy: `rayapp keys add NAME --role admin --root {root}`"
            report.add({"keys"}, [Finding("keys", str(root), "there are no API keys, so no ingress would start", fix)])
    if store_url is not None and store_url.startswith("redis"):
        from rayapp.store.redis_client import durability_problems

        report.add({"store"}, _durability(store_url, durability_problems))


def _durability(url: str, problems_of: Any) -> Iterator[Finding]:
    where = url.rpartition("@")[2]
    try:
        for problem in problems_of(url):
            said, _, fix = problem.partition(": ")
            yield Finding("store", where, said, fix[:1].upper() + fix[1:] or "Ask whoever runs it")
    except RayappError as error:
        yield Finding("store", where, str(error), "Start it, or mend the URL")


def _refused(check: str, root: Path, ask: Any) -> Iterator[Finding]:
    try:
        ask()
    except RayappError as error:
        said, _, fix = str(error).partition("; ")
        yield Finding(check, str(root), said, fix[:1].upper() + fix[1:] or "Mend that first")


def _silent(nodes: Iterable[str]) -> Iterator[Finding]:
    for node in nodes:
        yield Finding("capacity", node, "the node does not answer", "Look at ~/.rayapp/ray.log on it")


def _named(check: str, problems: Iterable[Finding]) -> list[Finding]:
    return [dataclasses.replace(problem, check=problem.check or check) for problem in problems]
