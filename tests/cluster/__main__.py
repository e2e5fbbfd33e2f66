"""`python -m tests.cluster SCENARIO`: brings three hosts up, does it, says what it came to. Needs root."""

import argparse
import os
import sys
import time
from pathlib import Path

from tests.cluster.hosts import RAY_HOSTS, Bed
from tests.cluster.scenarios import HERE, SCENARIOS, Cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="an environment with every dependency")
    parser.add_argument("--root", type=Path, required=True, help="a root with a live model")
    parser.add_argument("--bed", type=Path, default=Path("/tmp/rayapp-bed"), help="a short path; it is removed first")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("namespaces are made by root alone")
    if not list((HERE / "dist").glob("*.whl")):
        sys.exit("`make dist` makes the wheel that goes to the hosts")
    began = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:5.0f} s  {line}\n")
        sys.stdout.flush()

    bed = Bed(options.bed, options.venv.absolute(), HERE)
    cluster = Cluster(bed, say)
    try:
        bed.up()
        cluster.prepare(options.root)
        for line in SCENARIOS[options.scenario](cluster):
            say(line)
    except BaseException:
        for host in RAY_HOSTS:
            log = options.bed / host / "root/.rayapp/ray.log"
            words = log.read_text().splitlines()[-30:] if log.exists() else ["never started Ray"]
            sys.stderr.write("\n".join([f"--- {host}", *words, ""]))
        raise
    finally:
        bed.down()


if __name__ == "__main__":
    main()
