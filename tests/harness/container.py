"""A container of an unpacked image, confined as Kubernetes confines a pod that PodSecurity `restricted` admits.

It has process ids, a network, a name and mounts of its own; the root file system is read-only; its user has a number,
no capabilities and no way to new ones. There is no filter of system calls (seccomp).
"""

import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ADDRESS, HOSTNAME = "10.77.0.2", "head"
# a bridge without other ends stands for the pod's interface: kernels without the device `dummy` have it too
SETUP = f"""
mount --bind "$ROOT" "$ROOT"
mount --options remount,bind,ro "$ROOT"
mount --types proc proc "$ROOT/proc"
mount --rbind /sys "$ROOT/sys"
mount --rbind /dev "$ROOT/dev"
mount --types tmpfs tmpfs "$ROOT/dev/shm"
hostname {HOSTNAME}
ip link set lo up
ip link add eth0 type bridge
ip address add {ADDRESS}/24 dev eth0
ip link set eth0 up
ip route add default dev eth0
"""
TIED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child")
"""Before a command: it and all that it starts end with this process, however it ends."""
CONFINED = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")


@dataclass(frozen=True)
class Container:
    """What a container is started with.

    Args:
        root: its root file system.
        user: number of its user, and of its group.
        folder: its working folder.
        variables: all variables of its environment.
        volumes: by path in the container a folder here, which it may write as a group (`fsGroup`).
    """

    root: Path
    user: int
    folder: str
    variables: Mapping[str, str]
    volumes: Mapping[str, Path]

    def run(self, script: str, log: Path, limit_s: float) -> int:
        """Run a script of bash in it and return its exit code; everything in it ends with the script, or with us."""
        hosts = log.with_name("hosts")
        hosts.write_text(f"127.0.0.1 localhost\n{ADDRESS} {HOSTNAME}\n")
        binds = [f'mount --bind {shlex.quote(str(hosts))} "$ROOT/etc/hosts"']
        for path, source in self.volumes.items():
            source.mkdir(parents=True)
            os.chown(source, 0, self.user)
            source.chmod(0o2775)
            (self.root / path.strip("/")).mkdir(parents=True, exist_ok=True)  # as runtimes do for mounts
            binds.append(f'mount --bind {shlex.quote(str(source))} "$ROOT{path}"')
        user = ("--reuid", str(self.user), "--regid", str(self.user), "--groups", str(self.user))
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        inside = ["/usr/bin/setpriv", *user, *CONFINED, "/usr/bin/env", "--ignore-environment",
                  f"--chdir={self.folder}", *variables, "bash", "-c", script]  # fmt: skip
        setup = "\n".join(["set -eu", SETUP, *binds, f'exec chroot "$ROOT" {shlex.join(inside)}'])
        command = [*TIED, "--net", "--uts", "--ipc", "bash", "-c", setup]
        with log.open("wb") as output:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=limit_s,
                                  env={**os.environ, "ROOT": str(self.root)}, check=False)  # fmt: skip
        return done.returncode
