"""`rayapp ray`: Ray on one node of a cluster."""

import click

from rayapp.cli.options import GROUP_SETTINGS

PASS_ON = {**GROUP_SETTINGS, "ignore_unknown_options": True}


@click.group("ray")
def ray_group() -> None:
    """Ray on this node of a cluster: start it under a supervisor, run it for systemd, stop it whole."""


@ray_group.command("start", context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def start_node(arguments: tuple[str, ...]) -> None:
    """Start Ray here as a node of a cluster: `ray start` with ARGUMENTS (`--head`, or `--address=HEAD:6379`), in the
    environment that every node needs. It is started again whenever it ends.

    Returns once the node is up, and does nothing where the same wheel runs with the same arguments already.
    RAY_REDIS_ADDRESS names the Redis in which the head keeps the cluster's state, so that it may die and come back.
    """
    import os

    from rayapp.launch.node import STATE, node_of, start

    node = node_of(arguments, os.environ)
    if "--head" in arguments and not node.environment.get("RAY_REDIS_ADDRESS"):
        click.echo("no RAY_REDIS_ADDRESS: when this head dies, the whole cluster ends", err=True)
    click.echo("Ray is up" if start(node) else "Ray is up already, nothing changed")
    click.echo(f"its log, and that of its supervisor: {STATE}/ray.log")


@ray_group.command("run")
def run_node() -> None:
    """Run Ray here as `rayapp ray start` did last, until SIGTERM: for a unit of systemd, so that a node that
    booted joins again."""
    from rayapp.launch.node import read, run

    run(read())


@ray_group.command("stop")
@click.option(
    "--forget",
    "forgets",
    is_flag=True,
    help="Also remove the cluster's state from the Redis of RAY_REDIS_ADDRESS. On the head, when all workers are down.",
)
def stop_node(forgets: bool) -> None:
    """Stop Ray here with every replica, and see that nothing answers on the API's port any more."""
    import os

    from rayapp.launch import node

    settings = dict(os.environ)
    if forgets and "RAY_REDIS_ADDRESS" not in settings:
        settings = node.read().environment
    node.stop()
    click.echo("nothing of Ray runs here any more")
    if forgets:
        node.forget(settings)
        click.echo("the next head starts an empty cluster")


@ray_group.command("spread")
def spread_replicas() -> None:
    """Spread the replicas of the running graph over all nodes again, after one was away. Run it on the head.

    Replicas are replaced one at a time while the others answer; where they are spread already, nothing happens.
    """
    from rayapp.launch.spread import spread

    spread(click.echo)


COMMANDS = (ray_group,)
