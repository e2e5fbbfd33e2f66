"""What a preflight says: which checks were made, and what they found."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Severity = Literal["error", "warning"]
CHECKS: Final = {
    "cluster file": "the file for `ray up` is what Ray takes, and nothing in it is left to be set",
    "serve file": "the Serve configuration is what Ray takes, without unknown keys",
    "capacity": "the cluster holds the replicas that the Serve configuration asks for",
    "head": "the cluster's state outlives its head",
    "store": "nodes can share the store, it answers, and it loses no acknowledged event",
    "root": "every node sees the same root and can write to it",
    "model": "the root has a live model",
    "keys": "callers have API keys",
    "token": "Ray's own ports ask for a token that nobody else can read",
    "versions": "all nodes have the same Python, Ray, torch and rayapp",
    "profile": "all nodes have Ray's environment of a cluster",
    "haproxy": "HAProxy keeps its own pages on loopback",
    "ports": "the graph's ports are free",
    "shared memory": "shared memory holds Ray's object store",
    "file handles": "a process may open enough files",
    "disk": "the disks have room",
    "clocks": "the nodes' clocks agree",
}
"""Every check, and what holds where it finds nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is amiss."""

    check: str
    where: str
    """A node's address, or a file."""
    problem: str
    fix: str
    severity: Severity = "error"


@dataclass
class Report:
    """The checks that were made, in the order of `CHECKS`, and their findings."""

    made: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def add(self, checks: Iterable[str], findings: Iterable[Finding]) -> None:
        """Records that these checks were made and what they found."""
        self.made |= set(checks)
        self.findings += findings

    @property
    def failed(self) -> bool:
        """Whether anything but a warning was found."""
        return any(finding.severity == "error" for finding in self.findings)

    def text(self) -> str:
        """For people: a line for each check, and under it what was found."""
        lines = []
        for check, holds in CHECKS.items():
            if check not in self.made:
                continue
            found = [finding for finding in self.findings if finding.check == check]
            worst = "ok" if not found else "FAIL" if any(f.severity == "error" for f in found) else "warn"
            lines.append(f"{worst:4}  {check:13}" + ("" if found else f"  {holds}"))
            lines += [f"      {f.where}: {f.problem}. {f.fix}." for f in found]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        checks = [check for check in CHECKS if check in self.made]
        return {"ok": not self.failed, "checks": checks, "findings": [asdict(finding) for finding in self.findings]}
