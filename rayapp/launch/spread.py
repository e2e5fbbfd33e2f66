"""Spreads the replicas of a running graph over the nodes again.

Serve places a replica when it starts and never moves it: after a node was away, all replicas are on those that stayed.
A deployment that is given other options is replaced one replica at a time, while the others answer, and each new one
goes to the next node in turn. The option that is changed means nothing: a variable that says when it was.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rayapp.launch.ports import GraphError

DASHBOARD: Final = "http://127.0.0.1:8265"
MARK: Final = "RAYAPP_SPREAD_AT"
ATTEMPTS: Final = 3
ROLL_TIMEOUT_S: Final = 300


@contextlib.contextmanager
def joined(namespace: str) -> Iterator[None]:
    """The cluster that this machine is a node of.

    Raises:
        GraphError: it is none, or takes no call from here.
    """
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR, namespace=namespace)
    except Exception as error:
        raise GraphError(
            f"no cluster takes a call from here ({' '.join(str(error).split())[:200] or type(error).__name__}); run "
            "this on the head with RAY_AUTH_MODE=token, as `ray exec` does"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def spread(say: Callable[[str], None], dashboard: str = DASHBOARD) -> None:
    """Replaces the replicas of every deployment that is uneven. Returns at once where none is.

    Raises:
        GraphError: there is no graph, or it is still uneven after some attempts.
    """
    import ray
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    with joined("spread"):
        alive = [row for row in ray.nodes() if row["Alive"] and row["Resources"].get("CPU")]
    nodes = {row["NodeID"]: row["NodeManagerAddress"] for row in alive}
    try:
        client = ServeSubmissionClient(dashboard)
    except ConnectionError as error:
        raise GraphError(f"the dashboard does not answer ({error}); run this on the head") from None
    for _ in range(ATTEMPTS):
        details = client.get_serve_details()
        if not details.get("applications"):
            raise GraphError("no graph runs here; `serve deploy` starts one")
        wanted = uneven(placed(details), list(nodes))
        if not wanted:
            say(f"replicas are spread over {len(nodes)} nodes")
            return
        for application, deployment in wanted:
            where = [nodes.get(node, node) for node in placed(details)[application, deployment]]
            say(f"{deployment}: {_words(where)}; replacing one after another …")
            _roll(client, application, deployment)
    raise GraphError("replicas are still on few nodes; have the others room for them? `ray status` says")


def uneven(where: Mapping[tuple[str, str], Sequence[str]], nodes: Sequence[str]) -> list[tuple[str, str]]:
    """Deployments of which one node has at least two replicas more than another."""
    found = []
    for deployment, addresses in where.items():
        count = Counter(addresses)
        if max(count.values(), default=0) - min((count[node] for node in nodes), default=0) > 1:
            found.append(deployment)
    return found


def placed(details: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """The ids of the nodes of each deployment's replicas, from what Serve says of itself."""
    return {
        (name, deployment): [replica["node_id"] for replica in values["replicas"] if replica["state"] == "RUNNING"]
        for name, application in details["applications"].items()
        for deployment, values in application["deployments"].items()
    }


def marked(details: Mapping[str, Any], application: str, deployment: str, mark: str) -> dict[str, Any]:
    """The configuration that runs, with one deployment's options changed so that its replicas are replaced."""
    from ray.serve.schema import HTTPOptionsSchema

    configs = {name: dict(values["deployed_app_config"]) for name, values in details["applications"].items()}
    rows = [dict(row) for row in configs[application].get("deployments") or []]
    row = next((row for row in rows if row["name"] == deployment), None)
    if row is None:
        row = {"name": deployment}
        rows.append(row)
    actor = dict(row.get("ray_actor_options") or {})
    environment = dict(actor.get("runtime_env") or {})
    environment["env_vars"] = {**(environment.get("env_vars") or {}), MARK: mark}
    row["ray_actor_options"] = {**actor, "runtime_env": environment}
    configs[application]["deployments"] = rows
    http = {name: value for name, value in details["http_options"].items() if name in HTTPOptionsSchema.model_fields}
    return {
        "proxy_location": details["proxy_location"],
        "http_options": {name: value for name, value in http.items() if value is not None},
        "applications": list(configs.values()),
    }


def _roll(client: Any, application: str, deployment: str) -> None:
    before = client.get_serve_details()
    old = {replica["replica_id"] for replica in _replicas(before, application, deployment)}
    client.deploy_applications(marked(before, application, deployment, str(int(time.time() * 1000))))
    deadline = time.monotonic() + ROLL_TIMEOUT_S
    while time.monotonic() < deadline:
        details = client.get_serve_details()
        state = details["applications"][application]["deployments"].get(deployment, {})
        replicas = _replicas(details, application, deployment)
        new = all(replica["replica_id"] not in old and replica["state"] == "RUNNING" for replica in replicas)
        if replicas and new and state.get("status") == "HEALTHY":
            return
        time.sleep(1)
    raise GraphError(f"{deployment} was not replaced within {ROLL_TIMEOUT_S} s; `serve status` says why")


def _replicas(details: Mapping[str, Any], application: str, deployment: str) -> list[dict[str, Any]]:
    return list(details["applications"][application]["deployments"].get(deployment, {}).get("replicas", []))


def _words(addresses: Sequence[str]) -> str:
    return ", ".join(f"{count} on {node}" for node, count in sorted(Counter(addresses).items()))
