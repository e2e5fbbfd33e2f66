"""Replicas that are all on one node are spread over two, while requests go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.redis_server import free_port

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys, threading, time
import httpx, ray
from ray.cluster_utils import Cluster
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from rayapp.launch.spread import placed, spread

dashboard_port, port = map(int, sys.argv[1:])
dashboard, url = f"http://127.0.0.1:{dashboard_port}", f"http://127.0.0.1:{port}/"
options = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard_port}
cluster = Cluster(initialize_head=True, head_node_args=options)
cluster.add_node(num_cpus=2)
client = ServeSubmissionClient(dashboard)
application = {"name": "x", "import_path": "tests.spread_app:app", "deployments": [{"name": "Echo", "num_replicas": 2}]}
client.deploy_applications({"http_options": {"port": port}, "applications": [application]})
def where():
    return placed(client.get_serve_details()).get(("x", "Echo"), [])
while len(where()) < 2:
    time.sleep(0.5)
cluster.add_node(num_cpus=2)
before, statuses, ended = set(where()), [], threading.Event()
def ask():
    while not ended.wait(0.05):
        statuses.append(httpx.get(url, timeout=30).status_code)
asking = threading.Thread(target=ask)
asking.start()
import os
os.environ["RAY_ADDRESS"] = cluster.address
said = []
spread(said.append, dashboard)
after = set(where())
ended.set()
asking.join()
spread(said.append, dashboard)
ray.init(address=cluster.address, log_to_driver=False)
ports = [row["MetricsExportPort"] for row in ray.nodes() if row["Resources"].get("CPU")]
def counted():
    pages = [httpx.get(f"http://{ray.util.get_node_ip_address()}:{port}/metrics").text for port in ports]
    return ["ray_rayapp_replicas{" in page for page in pages]
deadline = time.monotonic() + 90
while not all(counted()) and time.monotonic() < deadline:
    time.sleep(1)
print("RESULT", json.dumps([len(before), len(after), sorted(set(statuses)), len(statuses), said, counted()]))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.cluster
@pytest.mark.extended
def test_replicas_are_spread_again_without_a_failed_request(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "RAY_TMPDIR": "/tmp"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(free_port()), str(free_port())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, after, statuses, asked, said, counted = json.loads(done.stdout.partition("RESULT ")[2].splitlines()[0])
    assert (before, after) == (1, 2)
    assert statuses == [200]
    assert counted == [True, True], "each node's exporter tells of its replicas"
    assert asked > 10
    assert "Echo: 2 on" in said[0]
    assert said[-2:] == ["replicas are spread over 2 nodes"] * 2, "the second time there is nothing to do"
