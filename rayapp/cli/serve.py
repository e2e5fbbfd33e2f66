"""`rayapp serve`: checks everything that can be checked before Ray starts, then serves."""

import os
import threading
from pathlib import Path

import click

from rayapp.launch.graph import metrics_url, running_graph
from rayapp.launch.ports import check_port, is_loopback
from rayapp.launch.runtime import Profile, local_ray
from rayapp.pipeline.restore import seed_store
from rayapp.registry.aliases import read_champion
from rayapp.registry.models import load_model
from rayapp.root.facts import read_root
from rayapp.root.places import SERVING
from rayapp.root.publish import PublishError, exclusive
from rayapp.serving.keys import Keys
from rayapp.store.address import URL, resolve


def check_champion(root: Path) -> str:
    """The champion's version, after loading it once here, where an error can still be told in one sentence.

    Raises:
        PublishError: no root, no champion, or one that does not load.
    """
    domain, _ = read_root(root)
    version = read_champion(root)
    load_model(root, version, domain)
    return version


def run_serve(root: Path, store_url: str | None, host: str, port: int, profile: Profile, keys: bool) -> None:
    version = check_champion(root)
    keys = keys or not is_loopback(host)
    if keys and not Keys.load(root).rows:
        raise PublishError(f"callers need a key on {host}, and {root} has none: rayapp keys add NAME --root {root}")
    check_port(port, host)
    url_of_store = resolve(root, store_url)
    os.environ[URL] = url_of_store  # for Ray's processes: the graph's settings, which Ray shows, hold no password
    with exclusive(root / SERVING, "serving"), local_ray(profile=profile):
        seed_store(root, url_of_store)  # a store that was moved away or lost comes back from the log
        click.echo(f"starting the graph with {version} …")
        with running_graph(root, port, None, host, keys=keys) as url:
            wait(url)


def wait(url: str) -> None:
    """Serves until Ctrl-C."""
    click.echo(f"serving at {url} (the page; API: {url}/docs; Prometheus: {metrics_url()}); Ctrl-C stops")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("stopping")
