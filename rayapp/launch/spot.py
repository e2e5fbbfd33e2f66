"""A spot machine of AWS is taken away two minutes after it was told: by then its replicas and tasks have moved.

Ray drains a node on request; nobody asks it to when AWS gives notice, so the supervisor of a node does.
"""

import contextlib
import json
import subprocess
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Final

METADATA: Final = "http://169.254.169.254"
"""Where a machine asks about itself, on every machine of AWS."""
SPOT: Final = "RAYAPP_SPOT"
"""Set to 1 where workers may be spot machines; others are told of nothing, and are asked in vain."""
POLL_S: Final = 5.0
ASK_TIMEOUT_S: Final = 2.0
LEASE_S: Final = "300"
LEFT_S: Final = 110
DRAIN: Final = (
    *("drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "AWS takes this spot machine away"),
    *("--deadline-remaining-seconds", str(LEFT_S)),
)
"""Of `ray`: Serve starts replacements elsewhere, and nothing new comes here."""


def notice(metadata: str = METADATA) -> str | None:
    """What AWS is about to do with this machine (`terminate`, `stop`, `hibernate`); None as long as it may stay."""
    ask = urllib.request.Request(
        f"{metadata}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": LEASE_S}
    )
    with contextlib.suppress(OSError, ValueError, KeyError):
        with urllib.request.urlopen(ask, timeout=ASK_TIMEOUT_S) as answer:
            token = answer.read().decode()
        look = urllib.request.Request(
            f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
        )
        with urllib.request.urlopen(look, timeout=ASK_TIMEOUT_S) as answer:
            return str(json.loads(answer.read())["action"])
    return None


def drain_on_notice(
    drain: Sequence[str],
    environment: Mapping[str, str],
    ended: threading.Event,
    metadata: str = METADATA,
    poll_s: float = POLL_S,
) -> None:
    """Asks until there is notice, then drains this node, again until Ray took it. Returns when that is done, or
    `ended` is set."""
    while not ended.wait(poll_s):
        if notice(metadata) is not None and subprocess.run(drain, env=environment, check=False).returncode == 0:
            return
