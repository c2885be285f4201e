"""The image of infra/Dockerfile, built without a registry: by buildah, over a Debian that mmdebstrap makes.

All of it is in one folder, which is emptied first, so that what a killed build left does not add up. The base is not
the one of the registry: it has Debian's Python, of the same minor version.
"""

import configparser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.container import TIED
from harness.pages import REPOSITORY

FOLDER = Path(os.environ.get("SCALABLEVIT_IMAGE_FOLDER", REPOSITORY / "build")).absolute() / "scalablevit-image"
TOOLS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux",
         "ip": "iproute2"}  # fmt: skip
NEEDED_GB = 32
"""Disk in use at most, 30 GB, while the image is stored: twice its files, and twice its layer as an archive."""
BASE, NAME = "docker.io/library/python:3.11-slim", "scalablevit:0.1.0"
DEBIAN = "bookworm"
# what the registry's image has: `python` and `pip`, which may install for the whole system
BASE_HOOKS = ('rm "$1"/usr/lib/python3.11/EXTERNALLY-MANAGED', 'ln -s /usr/bin/python3 "$1"/usr/local/bin/python')
BASE_FILE = 'FROM scratch\nADD base.tar /\nCMD ["python3"]\n'
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
BUILD_S = 1800


def missing() -> str:
    """What this machine lacks for it; empty if nothing."""
    lacking = [f"no {tool} (Debian: {package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if os.geteuid() != 0:
        lacking.append("not root, who alone can set up another user's root file system")
    place = next(parent for parent in FOLDER.parents if parent.exists())
    free = (shutil.disk_usage(place).free + _size(FOLDER)) / 1e9
    if free < NEEDED_GB:
        lacking.append(f"{free:.0f} GB of disk free below {place}, {NEEDED_GB} GB needed (SCALABLEVIT_IMAGE_FOLDER)")
    return "; ".join(lacking)


def _size(folder: Path) -> int:
    """Bytes that a build which was killed left."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


class Image:
    """The built image.

    Args:
        root: a container's root file system, unpacked.
        config: the image's configuration, as OCI has it (`User`, `Env`, `WorkingDir`, `Cmd`).
        layers: number of its layers.
    """

    def __init__(self, root: Path, config: dict[str, Any], layers: int) -> None:
        self.root = root
        self.config = config
        self.layers = layers


def build() -> Image:
    """Build it, which takes minutes and downloads gigabytes."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "tmp").mkdir(parents=True)
    hooks = [f"--customize-hook={hook}" for hook in BASE_HOOKS]
    _run("mmdebstrap", "--variant=minbase", "--include=python3,python3-pip,ca-certificates", *hooks, DEBIAN,
         str(FOLDER / "base.tar"))  # fmt: skip
    (FOLDER / "base.Dockerfile").write_text(BASE_FILE)
    options = ("--isolation", "chroot", "--layers=false", "--pull=never")
    _buildah("build", *options, "--file", str(FOLDER / "base.Dockerfile"), "--tag", BASE, str(FOLDER))
    infra = REPOSITORY / "infra"
    _buildah("build", *options, *_mounted_settings(), "--ignorefile", str(infra / "Dockerfile.dockerignore"),
             "--file", str(infra / "Dockerfile"), "--tag", NAME, str(REPOSITORY))  # fmt: skip
    described = json.loads(_buildah("inspect", "--type", "image", NAME))["OCIv1"]
    root = _buildah("mount", _buildah("from", "--pull=never", NAME))
    return Image(Path(root), described["config"], len(described["rootfs"]["diff_ids"]))


def _buildah(*arguments: str) -> str:
    storage = ("--root", str(FOLDER / "storage"), "--runroot", str(FOLDER / "run"), "--storage-driver", "vfs")
    return _run("buildah", *storage, *arguments)


def _run(*command: str) -> str:
    """Run a command to its end and return its last line of output; all of its messages are in the folder's log."""
    variables = {**os.environ, "TMPDIR": str(FOLDER / "tmp")}
    with (FOLDER / "log").open("a") as log:
        done = subprocess.run([*TIED, "--mount-proc", *command], env=variables, cwd=FOLDER, text=True, check=False,
                              stdout=subprocess.PIPE, stderr=log, timeout=BUILD_S)  # fmt: skip
        log.write(done.stdout)
    assert done.returncode == 0, f"{command[0]}: {done.returncode}\n{(FOLDER / 'log').read_text()[-5000:]}"
    return done.stdout.strip()


def _mounted_settings() -> list[str]:
    """This machine's indexes, proxies and certificates for pip and uv, as files that are there during the build only.

    (buildah hands on the variables of proxies by itself.)
    """
    settings = configparser.ConfigParser(interpolation=None)
    settings["global"] = {"cert": CERTIFICATES, **_pip_settings()}
    with (FOLDER / "pip.conf").open("w") as file:
        settings.write(file)
    (FOLDER / "uv.toml").write_text("\n".join(["system-certs = true", *_uv_settings()]) + "\n")
    found = os.environ.get("SSL_CERT_FILE", CERTIFICATES)
    files = {FOLDER / "pip.conf": "/etc/pip.conf", FOLDER / "uv.toml": "/etc/uv/uv.toml", found: CERTIFICATES}
    return [f"--volume={source}:{target}:ro" for source, target in files.items()]


def _pip_settings() -> dict[str, str]:
    """What pip's files and variables say here of indexes, without those on this machine's disk."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60,
                            check=True).stdout  # fmt: skip
    pairs = (line.split("=", 1) for line in listed.splitlines())
    found = {key.rpartition(".")[2].removeprefix("default-"): value.strip("'\"") for key, value in pairs}
    taken = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
    return {key: value for key, value in found.items() if key in taken and "file:" not in value}


def _uv_settings() -> list[str]:
    """What uv's variables say here of indexes."""
    first = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    more = (os.environ.get("UV_INDEX") or os.environ.get("UV_EXTRA_INDEX_URL") or "").split()
    return [*([f"index-url = {json.dumps(first)}"] if first else []), f"extra-index-url = {json.dumps(more)}"]
