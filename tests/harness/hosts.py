"""Hosts on this machine that are as separate as two machines: network, name, hosts file, temporary folder.

Each host is a network namespace of a user namespace of ours, so that a user needs no rights but to make one
(`unshare -Urnm`). A bridge joins them; every host reaches every other, and nothing else. All see this machine's files,
as with a folder that all mount, but for what `private` names.
"""

import os
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip")
NETWORK = "10.77.0"
SETUP_S = 30
LOOPBACK_NAME = "127.0.1.1"
"""The address that Debian's installer gives to a host's own name."""
LISTEN = """
import socket, sys
listening = socket.create_server((sys.argv[1], int(sys.argv[2])))
socket.send_fds(socket.socket(fileno=int(sys.argv[3])), [b"x"], [listening.fileno()])
"""
"""What a host runs to hand a socket that listens in its network to this process."""


def missing() -> str:
    """Why this machine cannot have such hosts; empty if it can."""
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    if lacking:
        return f"{', '.join(lacking)} missing (Debian: util-linux, iproute2)"
    tried = subprocess.run(["unshare", "-Urnm", "true"], capture_output=True, text=True, timeout=SETUP_S, check=False)
    return f"no user namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """A host: a process that holds its namespaces, in which commands are run.

    Args:
        holder: the process.
        name: the host's name, which resolves to loopback on it, as on Debian.
        address: its address on the bridge.
        link: the bridge's end of its cable.
        hub: the process that holds the bridge's namespaces.
    """

    def __init__(self, holder: "subprocess.Popen[bytes]", name: str, address: str, link: str, hub: int) -> None:
        self.holder = holder
        self.name = name
        self.address = address
        self._link = link
        self._hub = hub

    def command(self, *command: str) -> list[str]:
        """The command that runs a command on this host."""
        return [*_enter(self.holder.pid, "-U", "-n", "-m", "-u"), "--", *command]

    def run(self, *command: str, limit_s: float = SETUP_S, env: Mapping[str, str] | None = None) -> str:
        """Run a command on this host to its end and return what it printed."""
        done = subprocess.run(self.command(*command), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=limit_s, env=None if env is None else dict(env), check=False)  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(command)} on {self.name}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def start(self, log: Path, *command: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a command on this host, its output in a file, in a process group of its own."""
        with log.open("ab") as output:
            return subprocess.Popen(self.command(*command), stdin=subprocess.DEVNULL, stdout=output,
                                    stderr=subprocess.STDOUT, start_new_session=True,
                                    env=None if env is None else dict(env))  # fmt: skip

    @contextmanager
    def relay(self, port: int, target: int) -> Iterator[None]:
        """Hand what connects to a port of this host's address on to a port of this machine's loopback.

        Args:
            port: on the host.
            target: of a server that runs outside the hosts.
        """
        with _Relay(self._listening(port), target) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()

    def _listening(self, port: int) -> socket.socket:
        """Return a socket that listens on this host: a socket stays in the network in which it was made."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            asked = self.command(sys.executable, "-c", LISTEN, self.address, str(port), str(theirs.fileno()))
            subprocess.run(asked, pass_fds=[theirs.fileno()], timeout=SETUP_S, check=True)
            _, (number,), _, _ = socket.recv_fds(ours, 1, 1)
        return socket.socket(fileno=number)

    def plug(self, *, plugged: bool) -> None:
        """Pull its cable, or put it back."""
        _run([*_enter(self._hub, "-U", "-n"), "--", "ip", "link", "set", self._link, "up" if plugged else "down"])

    def end_processes(self) -> None:
        """SIGKILL to all that runs in the host's network, whoever started it, as if its power went."""
        place = Path(f"/proc/{self.holder.pid}/ns/net").readlink()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.holder.pid:
                try:
                    if (entry / "ns/net").readlink() == place:
                        os.kill(int(entry.name), signal.SIGKILL)
                except OSError:  # it is gone, or another user's
                    continue


class _Relay(socketserver.ThreadingTCPServer):
    """Connects each connection of a listening socket, which it owns, to a port of loopback."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, target: int) -> None:
        super().__init__(("", 0), _Joined, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.target = target


class _Joined(socketserver.BaseRequestHandler):
    """One connection."""

    server: _Relay

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as inner:
            back = threading.Thread(target=_copy, args=(inner, self.request), daemon=True)
            back.start()
            _copy(self.request, inner)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes, and the end of it; either side may be killed."""
    with suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def hosts(count: int, folder: Path, private: Sequence[Path] = ()) -> Iterator[list[Host]]:
    """Hosts with addresses 10.77.0.1, 10.77.0.2, ..., until the end of the context; processes on them end with it.

    Args:
        count: number of hosts.
        folder: for their hosts files.
        private: existing folders that each host but the first has empty, and for itself.
    """
    holders: list[subprocess.Popen[bytes]] = []
    hub = _hold(["unshare", "-Urn"], holders)
    made: list[Host] = []
    try:
        _run(
            [
                *_enter(hub, "-U", "-n"),
                "--",
                "sh",
                "-ec",
                "ip link set lo up; ip link add br0 type bridge; ip link set br0 up",
            ]
        )
        for number in range(1, count + 1):
            host = _host(number, count, hub, holders, folder, private if number > 1 else ())
            made.append(host)  # each at once, so that what is there is ended if the next one fails
        yield made
    finally:
        for host in made:
            host.end_processes()
        for holder in reversed(holders):
            holder.kill()
            holder.wait(timeout=SETUP_S)


def _host(
    number: int, count: int, hub: int, holders: list["subprocess.Popen[bytes]"], folder: Path, private: Sequence[Path]
) -> Host:
    name, address, link = f"host{number}", f"{NETWORK}.{number}", f"cable{number}"
    pid = _hold([*_enter(hub, "-U"), "--", "unshare", "-n", "-m", "-u"], holders)
    host = Host(holders[-1], name, address, link, hub)
    names = "".join(f"{NETWORK}.{other} host{other}\n" for other in range(1, count + 1) if other != number)
    file = folder / f"{name}.hosts"
    file.write_text(f"127.0.0.1 localhost\n{LOOPBACK_NAME} {name}\n{names}")
    _run([*_enter(hub, "-U", "-n"), "--", "sh", "-ec",
          f"ip link add {link} type veth peer name eth0 netns {pid}; ip link set {link} master br0 up"])  # fmt: skip
    empty = "".join(f"mount -t tmpfs tmpfs {shlex.quote(str(path))}; " for path in private)
    host.run("sh", "-ec", f"hostname {name}; ip link set lo up; ip addr add {address}/24 dev eth0; "
             f"ip link set eth0 up; mount --bind {shlex.quote(str(file))} /etc/hosts; {empty}")  # fmt: skip
    return host


def _hold(command: list[str], holders: list["subprocess.Popen[bytes]"]) -> int:
    """Start a process that only holds the new namespaces of a command, wait until it has them, and return its id."""
    process = subprocess.Popen(
        [*command, "sleep", "infinity"], stdin=subprocess.DEVNULL, env={**os.environ, "PATH": _path()}
    )
    holders.append(process)
    deadline = time.monotonic() + SETUP_S
    while Path(f"/proc/{process.pid}/comm").read_text().strip() != "sleep":
        assert process.poll() is None, f"{shlex.join(command)}: ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{shlex.join(command)}: not ready after {SETUP_S} s"
        time.sleep(0.01)
    return process.pid


def _enter(pid: int, *kinds: str) -> list[str]:
    return ["nsenter", "--target", str(pid), *kinds, "--preserve-credentials"]


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SETUP_S, check=False, env={**os.environ, "PATH": _path()}
    )
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"


def _path() -> str:
    """Where system tools are, also for users whose PATH lacks them."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
