"""Ray's own start-up for AWS takes cluster.yaml: against EC2 and IAM as moto plays them."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayapp.preflight.files import PLACEHOLDERS

ROOT = Path(__file__).parents[1]
pytest.importorskip("moto")

# In a process of its own: boto3 warns and connects as it likes, and Ray caches what it asked.
PROGRAM = """
import json, os, sys
os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-west-2"}
import boto3, yaml
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config

with mock_aws():
    ec2, iam = boto3.client("ec2", "us-west-2"), boto3.client("iam")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="rayapp", Description="rayapp", VpcId=vpc)["GroupId"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for name in ("rayapp-head", "rayapp-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    text = open(sys.argv[1]).read()
    for name, value in {"AMI_UBUNTU_2404_GPU": image, "AMI_UBUNTU_2404": image, "SECURITY_GROUP": group,
                        "FILE_SYSTEM": "fs-1", "GCS_REDIS": "gcs:6379"}.items():
        text = text.replace(name, value)
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = bootstrap_aws(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind in ("head", "cpu"):
        node = config["available_node_types"][kind]["node_config"]
        provider.create_node(node, {"ray-node-type": "head" if kind == "head" else "worker"}, 1)
    rows = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    json.dump({
        "types": config["available_node_types"], "group": group, "roles": len(iam.list_roles()["Roles"]),
        "groups": [g["GroupName"] for g in ec2.describe_security_groups()["SecurityGroups"]],
        "instances": [{"type": i["InstanceType"], "groups": [g["GroupId"] for g in i["SecurityGroups"]],
                       "profile": i["IamInstanceProfile"]["Arn"]} for i in rows],
    }, sys.stdout)
"""


@pytest.mark.slow
def test_ray_s_start_up_for_aws_makes_these_nodes_and_nothing_of_its_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "cluster.yaml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "cluster.yaml")],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout[done.stdout.index("{") :])
    assert found["roles"] == 0, "Ray makes no role with full access to EC2 and S3"
    assert sorted(found["groups"]) == ["default", "rayapp"], "and no group that is open to the world"
    head, cpu = sorted(found["instances"], key=lambda row: str(row["profile"]))
    assert head["profile"].endswith("/rayapp-head")
    assert cpu["profile"].endswith("/rayapp-worker")
    wanted = copy.deepcopy(yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"])
    assert [head["type"], cpu["type"]] == [wanted[kind]["node_config"]["InstanceType"] for kind in ("head", "cpu")]
    for kind, node_type in found["types"].items():
        config = node_type["node_config"]
        assert config["SecurityGroupIds"] == [found["group"]]
        assert config["KeyName"]
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert not PLACEHOLDERS.search(yaml.safe_dump(config))
        assert ("InstanceMarketOptions" in config) == (kind == "gpu"), "what serves is not taken away"
