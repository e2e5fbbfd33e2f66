"""`rayapp preflight --running` on a cluster of two nodes: every node is asked, by a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rayapp.contracts.config import Domain
from rayapp.root.facts import make_root
from rayapp.serving.keys import Role, add_key

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"  # for the processes of this node alone
cluster.add_node(num_cpus=2, labels={"tier": "cpu"})
os.environ["RAY_ADDRESS"] = cluster.address
from rayapp.cli.main import cli
try:
    cli(["preflight", "--running", "--serve", sys.argv[1], "--json"], standalone_mode=False)
finally:
    cluster.shutdown()
"""


@pytest.mark.cluster
@pytest.mark.extended
def test_every_node_of_a_cluster_is_asked(tmp_path: Path, domain: Domain) -> None:
    from rayapp.launch.node import ENVIRONMENT

    root = tmp_path / "root"
    make_root(root, domain)
    add_key(root, "ops", Role.ADMIN)
    config = yaml.safe_load((ROOT / "deployments/production.yaml").read_text())
    config["applications"][0]["args"] |= {"root": str(root), "store": None}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, **ENVIRONMENT, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": "/tmp"}
    environment |= {"RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("rayapp-haproxy"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "serve.yaml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout[done.stdout.index('{\n  "ok"') :])
    found = {(row["check"], row["severity"]) for row in report["findings"]}
    assert (
        len([row for row in report["findings"] if row["check"] == "token" and "answer everybody" in row["problem"]])
        == 2
    )
    (profile,) = [row for row in report["findings"] if row["check"] == "profile"]
    assert "RAY_SERVE_ENABLE_HA_PROXY=0, not 1" in profile["problem"], "one node of two differs"
    assert ("store", "error") in found, "two nodes and an LMDB"
    assert ("model", "error") in found
    assert ("head", "warning") in found
    assert ("capacity", "error") in found, "4 CPUs are asked for at the start, and 2 are there"
    assert not {check for check, _ in found} & {"versions", "root", "clocks", "keys", "haproxy", "serve file"}
    assert not list(root.glob(".preflight*"))
