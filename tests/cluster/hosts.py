"""Machines for a cluster, made of namespaces: each has its own network, processes, host name, home, /tmp and /dev/shm,
and a writable layer over one virtual environment. Nothing of this machine's own network is changed.

A host's sshd is the first process of its process namespace; killing that one is pulling the power cable.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NETWORK = "10.213.7"
ADDRESSES = {"head": 11, "w1": 12, "w2": 13, "gcs": 5, "redis": 6, "laptop": 20}
RAY_HOSTS = ("head", "w1", "w2")
ALIASES = {"gcs": "gcs.internal", "redis": "redis.internal"}

# What a new process of a host sees, before it becomes its first process. /tmp is last: the bed itself lies there.
ENTER = """
set -e
hostname "$NAME"
mkdir -p /mnt/rayapp
mount --bind "$BED/shared" /mnt/rayapp
mount --bind "$BED/etc-hosts" /etc/hosts
mount -t overlay overlay -o "lowerdir=$VENV,upperdir=$HERE/upper,workdir=$HERE/work" "$VENV"
mount -t tmpfs -o size=3g tmpfs /dev/shm
mkdir -p "$HERE/root/source"
mount --bind "$SOURCE" "$HERE/root/source"
case $PYTHON in /root/*) mkdir -p "$HERE$PYTHON"; mount --bind "$PYTHON" "$HERE$PYTHON";; esac
mount --rbind "$HERE/root" /root
mount --rbind "$HERE/tmp" /tmp
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
cd /root
exec env -i HOME=/root LANG=C.UTF-8 TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""
SSHD = """
ListenAddress {address}
HostKey /root/.hostkey
PidFile none
PermitRootLogin prohibit-password
UsePAM no
MaxStartups 100
Subsystem sftp internal-sftp
"""


def address(name: str) -> str:
    """IP address of a machine."""
    return f"{NETWORK}.{ADDRESSES[name]}"


def wait_for(what: str, done: Callable[[], Any], timeout_s: float, pause_s: float = 0.5) -> Any:
    """The first true value of `done()`; raises TimeoutError where none comes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := done():
            return value
        time.sleep(pause_s)
    raise TimeoutError(f"not within {timeout_s} s: {what}")


@dataclass
class Bed:
    """All machines; `up` makes them, `down` ends them."""

    directory: Path
    """Short and absolute, on a file system that overlays may lie on; at best not below the home directory."""
    venv: Path
    """With every dependency. Hosts see it at the same path, and find no package index."""
    source: Path
    prefix: str = "rayapp"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def up(self) -> None:
        """The network, Redis for events and for the GCS, three hosts, the operator's laptop."""
        self.down()
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "shared").mkdir(parents=True)
        lines = [f"{address(name)} {name} {ALIASES.get(name, '')}" for name in ADDRESSES]
        (self.directory / "etc-hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / "key"))
        self._ip("netns", "add", self._net("switch"))
        self._inside("switch", "ip", "link", "add", "br0", "type", "bridge")
        self._inside("switch", "ip", "link", "set", "br0", "up")
        for name in ADDRESSES:
            self._connect(name)
        for name in ("redis", "gcs"):
            self.start_redis(name)
        for name in (*RAY_HOSTS, "laptop"):
            self.boot(name)

    def down(self) -> None:
        """Ends every process and namespace of the bed."""
        for name in list(self.processes):
            self.kill(name)
        for name in (*ADDRESSES, "switch"):
            subprocess.run(["ip", "netns", "del", self._net(name)], capture_output=True, check=False)

    def boot(self, name: str) -> None:
        """Starts a host; what it had on its disk is still there."""
        here = self.directory / name
        for part in ("root/.ssh", "tmp", "upper", "work"):
            (here / part).mkdir(parents=True, exist_ok=True)
        (here / "tmp").chmod(0o1777)
        (here / "root/.ssh").chmod(0o700)
        shutil.copy(f"{self.directory}/key.pub", here / "root/.ssh/authorized_keys")
        shutil.copy(self.directory / "key", here / "root/.ssh/id_ed25519")
        (here / "root/.ssh/config").write_text("StrictHostKeyChecking accept-new\n")
        profile = here / "root/.bashrc"
        if not profile.exists():  # a new machine: no index of packages to be reached
            profile.write_text("export PIP_NO_INDEX=1 PIP_CONFIG_FILE=/dev/null PIP_ROOT_USER_ACTION=ignore\n")
            (here / "root/.profile").write_text(". ~/.bashrc\n")
            (here / "root/rayapp").mkdir()
            (here / "root/rayapp/venv").symlink_to(self.venv)
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(here / "root/.hostkey"))
            (here / "root/.sshd_config").write_text(SSHD.format(address=address(name)))
        self._inside("switch", "ip", "link", "set", f"{self.prefix}-{name}-b", "up")
        command = (
            ["/usr/sbin/sshd", "-D", "-e", "-f", "/root/.sshd_config"] if name in RAY_HOSTS else ["sleep", "infinity"]
        )
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self._net(name)),
                    *("unshare", "-pfmu", "--kill-child", "--mount-proc", "--propagation", "private"),
                    *("bash", "-c", ENTER, "enter", *command),
                ],
                env={
                    **{"NAME": name, "BED": str(self.directory), "HERE": str(here), "VENV": str(self.venv)},
                    **{"SOURCE": str(self.source), "PYTHON": str((self.venv / "bin/python").resolve().parents[1])},
                    "PATH": os.environ["PATH"],
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(f"{name} is up", lambda: self.run(name, "true", check=False).returncode == 0, 20)
        # The venv is a machine's image with every dependency, and without rayapp itself.
        if name in RAY_HOSTS:
            self.run(name, "[ -e rayapp/venv/rayapp.whl ] || rayapp/venv/bin/pip uninstall -qy rayapp 2> /dev/null")

    def kill(self, name: str, *, plug: bool = False) -> None:
        """All processes of a machine die at once; with `plug` its network is cut first, so that no peer hears of it."""
        if plug:
            self._inside("switch", "ip", "link", "set", f"{self.prefix}-{name}-b", "down")
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def start_redis(self, name: str) -> None:
        """Redis with the settings that docs/realtime.md asks for."""
        home = self.directory / name
        home.mkdir(exist_ok=True)
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self._net(name), "redis-server", "--bind", address(name)),
                    *("--protected-mode", "no", "--dir", str(home), *durable),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(
        self, name: str, command: str, *, check: bool = True, timeout_s: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """A command in a login shell of a machine."""
        done = subprocess.run(self.enter(name, command), capture_output=True, text=True, check=False, timeout=timeout_s)
        if check and done.returncode != 0:
            raise RuntimeError(f"{name}$ {command}\n{done.stdout}\n{done.stderr}")
        return done

    def enter(self, name: str, command: str) -> list[str]:
        """The command line that runs a command on a machine."""
        children = (
            Path(f"/proc/{self.processes[name].pid}/task/{self.processes[name].pid}/children").read_text().split()
        )
        first = children[0] if children else "0"
        return [
            *("nsenter", "-t", first, "-a", "--", "env", "-i", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"),
            *("bash", "--login", "-c", f"cd ~; {command}"),
        ]

    def _connect(self, name: str) -> None:
        inner, outer = f"{self.prefix}-{name}-a", f"{self.prefix}-{name}-b"
        self._ip("netns", "add", self._net(name))
        self._ip(
            "link",
            "add",
            inner,
            "netns",
            self._net(name),
            "type",
            "veth",
            "peer",
            "name",
            outer,
            "netns",
            self._net("switch"),
        )
        self._inside(name, "ip", "link", "set", inner, "name", "eth0")
        self._inside(name, "ip", "addr", "add", f"{address(name)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._inside(name, "ip", "link", "set", device, "up")
        self._inside("switch", "ip", "link", "set", outer, "master", "br0", "up")

    def _net(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _inside(self, name: str, *command: str) -> None:
        self._ip("netns", "exec", self._net(name), *command)

    def _ip(self, *arguments: str) -> None:
        _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
