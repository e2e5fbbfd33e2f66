"""A cluster of three hosts as docs/cluster.md makes it, and what is done to it. Each function is one scenario."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from rayapp.root.catalogue import read_catalogue
from rayapp.root.facts import read_root
from tests.cluster.figures import Figures, events_in, figures, read
from tests.cluster.hosts import RAY_HOSTS, Bed, address, wait_for

HERE = Path(__file__).parents[2]
ROOT = "/mnt/rayapp/root"
OBJECT_STORE = " --object-store-memory=300000000"
"""Three hosts share one machine's memory."""
CPUS = 4


def page() -> list[str]:
    """The commands of docs/cluster.md, in order: what is exported first, then the eight."""
    text = (HERE / "docs/cluster.md").read_text()
    part = text[text.index("## Eight commands") : text.index("## What keeps running")]
    return re.findall(r"```sh\n(.*?)```", part, flags=re.S)


@dataclass
class Cluster:
    """The bed with a cluster on it."""

    bed: Bed
    say: Callable[[str], None]
    keys: dict[str, str] = field(default_factory=dict)
    action: str = ""
    """A positive one of the domain."""
    items: list[str] = field(default_factory=list)

    def laptop(self, command: str, timeout_s: float = 300) -> str:
        """A command of the page, typed on the laptop."""
        done = self.bed.run("laptop", f"cd checkout; {page()[0]} {command}", timeout_s=timeout_s)
        return done.stdout + done.stderr

    def head(self, command: str, timeout_s: float = 300) -> str:
        """A command on the head."""
        return self.bed.run("head", command, timeout_s=timeout_s).stdout

    def prepare(self, root: Path) -> None:
        """The shared root; on the laptop a checkout with its wheel, in which the cluster's file is filled in."""
        self.action = read_root(root)[0].heads[0].actions[0]
        self.items = read_catalogue(root)["item_id"].to_pylist()[:50]
        shutil.copytree(root, self.bed.directory / "shared/root", ignore=shutil.ignore_patterns("store", "store.json"))
        self.bed.run(
            "laptop",
            "mkdir checkout; cp -a source/{dist,deployments,constraints.txt,tests} checkout; "
            "rayapp/venv/bin/pip uninstall -qy rayapp; rayapp/venv/bin/pip install -q --no-deps source/dist/*.whl; "
            "echo 'export PATH=~/rayapp/venv/bin:$PATH' >> .profile",
        )
        path = self.bed.directory / "laptop/root/checkout/deployments/cluster/onprem.yaml"
        config = yaml.safe_load(path.read_text())
        config["provider"] |= {"head_ip": address("head"), "worker_ips": [address("w1"), address("w2")]}
        config["auth"]["ssh_user"] = "root"
        for role in ("head", "worker"):
            commands = config[f"{role}_start_ray_commands"]
            commands[-1] = commands[-1].replace("--num-cpus=20", f"--num-cpus={CPUS}") + OBJECT_STORE
        path.write_text(yaml.safe_dump(config))

    def up(self) -> None:
        """The page as far as a running graph."""
        _, token, up, keys, deploy, *_ = page()
        self.laptop(token)
        self.step("ray up", lambda: self.laptop(up))
        self.step("three nodes", lambda: wait_for("three nodes", lambda: self.nodes() == 3, 240, 3))
        made = self.laptop(keys)
        self.keys = {key.split("_")[1]: key for key in re.findall(r"rayapp_(?:admin|client)_\S+", made)}
        self.step("preflight", lambda: self.say(self.preflight()))
        self.laptop(deploy)
        self.step("running graph", lambda: wait_for("the graph runs", self.is_running, 240, 3))

    def preflight(self) -> str:
        """What it says; its exit code is not asked for: the hosts of a small machine may be short of something."""
        command = "rayapp preflight --running --serve ~/rayapp/dist/production.yaml"
        done = self.bed.run("head", command, check=False, timeout_s=120)
        return done.stdout + done.stderr

    def nodes(self) -> int:
        """Live nodes, as the head counts them."""
        program = (
            "import ray; ray.init(address='auto', logging_level=40, log_to_driver=False); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        done = self.bed.run("head", f'rayapp/venv/bin/python -c "{program}"', check=False, timeout_s=60)
        return int(done.stdout.split()[0]) if done.returncode == 0 else 0

    def is_running(self) -> bool:
        """Whether Serve says so."""
        return "status: RUNNING" in self.bed.run("head", "serve status", check=False, timeout_s=60).stdout

    def replicas(self) -> dict[str, list[str]]:
        """Nodes of the replicas that run, by deployment."""
        program = (
            "from ray.dashboard.modules.serve.sdk import ServeSubmissionClient as C; "
            "from rayapp.launch.spread import DASHBOARD, placed; "
            "print({k[1]: v for k, v in placed(C(DASHBOARD).get_serve_details()).items()})"
        )
        done = self.bed.run("head", f'rayapp/venv/bin/python -c "{program}"', check=False, timeout_s=60)
        return dict(yaml.safe_load(done.stdout) or {}) if done.returncode == 0 else {}

    def is_spread(self) -> bool:
        """Whether both workers have replicas of both deployments."""
        found = self.replicas()
        return len(found) == 2 and all(len(set(nodes)) == 2 for nodes in found.values())

    def post(self, node: str, path: str, body: str, role: str = "client") -> subprocess.CompletedProcess[str]:
        """A request from the laptop."""
        command = f"curl -sS -m 10 -H 'X-API-Key: {self.keys[role]}' http://{node}:8000{path} {body}"
        return self.bed.run("laptop", command, check=False)

    @contextmanager
    def load(self, name: str, targets: str, seconds: float) -> Iterator[Path]:
        """4 requests a second from the laptop meanwhile; gives the file of their outcomes and waits for the end."""
        command = f"cd source; ../rayapp/venv/bin/python -m tests.cluster.load --targets {targets}"
        command += f" --key {self.keys['client']} --seconds {seconds} --out ~/{name}.jsonl"
        command += f" --action {self.action} --items {','.join(self.items)}"
        process = subprocess.Popen(self.bed.enter("laptop", command), stdout=subprocess.DEVNULL)
        try:
            yield self.bed.directory / f"laptop/root/{name}.jsonl"
            assert process.wait() == 0
        finally:
            process.kill()

    def figures(self, rows: Path) -> Figures:
        """Of a load, after an export."""
        self.head(f"rayapp export --root {ROOT}")
        return figures(read(rows), events_in(self.bed.directory / "shared/root"))

    def step(self, name: str, do: Callable[[], object]) -> float:
        """Does it and says how long it took."""
        began = time.monotonic()
        do()
        took_s = time.monotonic() - began
        self.say(f"{name}: {took_s:.0f} s")
        return took_s


def first(cluster: Cluster) -> list[str]:
    """The page, literally; events and feeds through every node; jobs to their end; down."""
    cluster.up()
    *_, event, feed, job, down = page()
    key = f"KEY={cluster.keys['client']}; "
    known = f'"item_id": "{cluster.items[0]}", "action": "{cluster.action}"'
    for command, node, part in ((event, "w1", '"accepted"'), (feed, "w2", '"items"')):
        typed = command.replace('"item_id": "50", "action": "save"', known).replace("NODE", node)
        answer = cluster.laptop(key + typed)
        assert part in answer, answer
    with cluster.load("first", "head,w1,w2", 20) as rows:
        pass
    scrape = "for node in w1 w2; do curl -s http://$node:8080/metrics | grep ^ray_rayapp_replicas; done"
    metrics = cluster.bed.run("laptop", scrape, check=False).stdout
    counted = sorted(re.findall(r'deployment="(\w+)".*node="([\d.]+)"', metrics))
    cluster.say(f"ray_rayapp_replicas: {counted}")
    moved_s = promotion(cluster)
    cluster.say(f"promotion seen by every node after {moved_s:.1f} s")
    short = job.replace("--exit-zero", "--exit-zero --train-window-days 2")  # fewer windows than the page's fortnight
    cluster.step("retraining as a job", lambda: cluster.say(cluster.laptop(short)[-900:]))
    found = figures(read(rows), events_in(cluster.bed.directory / "shared/root"))
    cluster.say(str(found))
    submit = "ray exec $C 'ray job submit --entrypoint-num-cpus 1 -- rayapp {}'"
    day = time.strftime("%Y-%m-%d")
    score = f"batch-score --root {ROOT} --all-users --as-of {day} --top-k 5 --out /mnt/rayapp/feeds --workers 1"
    cluster.step("batch-score as a job", lambda: cluster.laptop(submit.format(score)))
    assert list((cluster.bed.directory / "shared/feeds/scores").rglob("*.parquet"))
    typed = down.replace("WORKER_1", address("w1")).replace("WORKER_2", address("w2"))
    down_s = cluster.step("down", lambda: cluster.laptop(typed))
    for host in RAY_HOSTS:
        looks = "ps ax -o args | grep -E '^ray::|raylet|gcs_server|haproxy' | grep -v grep"
        left = cluster.bed.run(host, looks, check=False)
        assert left.stdout == "", f"{host} still runs {left.stdout}"
        assert cluster.post(host, "/health/live", "").returncode == 7, "the connection is refused"
    assert {deployment for deployment, _ in counted} == {"Ingress", "Ranker"}, metrics
    assert (found.failed_feeds, found.failed_events, found.lost) == (0, 0, 0), found
    return [
        found.row("first"),
        f"promotion seen by every node after {moved_s:.1f} s; down after {down_s:.0f} s, nothing answers on any host",
    ]


def promotion(cluster: Cluster) -> float:
    """Seconds until every node's feeds name the model that was promoted."""
    root = cluster.bed.directory / "shared/root"
    live = json.loads((root / "aliases/no-sequence.json").read_text())["version"]
    began = time.monotonic()
    moved = cluster.post("w1", f"/v1/models/{live}:promote", "-X POST", role="admin")
    assert live in moved.stdout, moved.stdout

    def seen() -> bool:
        body = "-H 'Content-Type: application/json' -d '{\"user_id\": \"u1\"}'"
        return all(f'"{live}"' in cluster.post(node, "/v1/recommendations", body).stdout for node in RAY_HOSTS)

    wait_for("the promotion is seen", lambda: all(seen() for _ in range(2)), 30, 0.2)
    return time.monotonic() - began


def head(cluster: Cluster) -> list[str]:
    """The head is killed and boots again a minute later, under load through the workers."""
    cluster.up()
    with cluster.load("head", "w1,w2", 180) as rows:
        time.sleep(15)
        cluster.bed.kill("head")
        time.sleep(60)
        cluster.bed.boot("head")
        as_a_unit(cluster, "head")
        back_s = cluster.step("the head is back", lambda: wait_for("the graph runs", cluster.is_running, 120, 2))
    found = cluster.figures(rows)
    cluster.say(str(found))
    assert (found.failed_feeds, found.failed_events, found.lost) == (0, 0, 0), found
    return [found.row("head"), f"RUNNING again {back_s:.0f} s after the head had booted, without a deploy"]


def worker(cluster: Cluster) -> list[str]:
    """A worker's plug is pulled; it comes back, replicas are spread again, and the other worker is killed."""
    cluster.up()
    wait_for("replicas on both workers", cluster.is_spread, 60, 3)
    lines = []
    with cluster.load("worker1", "head,w1", 130) as rows:
        time.sleep(10)
        cluster.bed.kill("w2", plug=True)
    lines.append(cluster.figures(rows).row("a worker, plug pulled"))
    cluster.bed.boot("w2")
    as_a_unit(cluster, "w2")
    wait_for("three nodes", lambda: cluster.nodes() == 3, 120, 3)
    with cluster.load("spread", "head,w1", 100) as rows:
        spread_s = cluster.step("spread", lambda: cluster.laptop("ray exec $C 'rayapp ray spread'"))
        assert cluster.is_spread(), cluster.replicas()
    lines.append(cluster.figures(rows).row("replicas are spread again"))
    with cluster.load("worker2", "head,w2", 120) as rows:
        time.sleep(10)
        cluster.bed.kill("w1")
    found = cluster.figures(rows)
    cluster.say("\n".join([*lines, str(found)]))
    assert found.lost == 0, found
    assert found.longest_gap_s <= 90, found
    return [*lines, found.row("the other worker, killed"), f"spreading took {spread_s:.0f} s"]


def redis(cluster: Cluster) -> list[str]:
    """Both Redis are killed and come back after 15 seconds."""
    cluster.up()
    with cluster.load("redis", "head,w1,w2", 110) as rows:
        time.sleep(15)
        for name in ("redis", "gcs"):
            cluster.bed.kill(name)
        time.sleep(15)
        for name in ("redis", "gcs"):
            cluster.bed.start_redis(name)
        back_s = cluster.step("the GCS is back", lambda: wait_for("the graph runs", cluster.is_running, 90, 2))
    found = cluster.figures(rows)
    cluster.say(str(found))
    assert found.lost == 0, found
    return [found.row("both Redis, for 15 s"), f"RUNNING again {back_s:.0f} s after the Redis were back, by itself"]


def as_a_unit(cluster: Cluster, host: str) -> None:
    """What systemd does at boot: `rayapp ray run`."""
    cluster.bed.run(host, "setsid rayapp ray run >> .rayapp/ray.log 2>&1 < /dev/null & sleep 1")


SCENARIOS = {"first": first, "head": head, "worker": worker, "redis": redis}
