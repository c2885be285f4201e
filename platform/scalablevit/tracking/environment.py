"""Describes what a run was made with: packages, interpreter, platform, and the version of our own code."""

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from scalablevit.config.packages import package_files, package_sum

GIT_TIMEOUT_S = 10
"""Longest run of a git command in seconds."""
UNKNOWN = "unknown"
"""In place of a version that damaged metadata does not say."""
SHIPPED = ("recipes", "tune_spaces")
"""Folders of the package without code: links in a checkout, copies in an upload or an installed package."""


class GitVersion(TypedDict):
    """The state of a git repository."""

    commit: str
    modified: bool
    """Whether files differ from the commit."""


class CodeVersion(TypedDict):
    """The version of our package's code."""

    path: str
    """Folder of the package."""
    digest: str
    """SHA-256, see `code_digest`."""
    git: GitVersion | None
    """None: the package is not in a repository of its own."""


class Environment(TypedDict):
    """Content of a run's `environment.json`."""

    python: str
    platform: str
    code: CodeVersion
    packages: dict[str, str]
    """Version by name, sorted."""
    damaged_packages: int
    """Number of installed packages whose metadata says no name or version."""


def code_files(package: Path) -> list[Path]:
    """Return the files of our package that are code, sorted by relative path: none of the shipped recipes."""
    return package_files(package, SHIPPED)


def code_digest(package: Path) -> str:
    """Return the SHA-256 of our package's code: equal code, equal digest, wherever it is."""
    return package_sum(package, SHIPPED)


def git_version(package: Path) -> GitVersion | None:
    """Return the commit of the package's own repository, and whether its files differ from it; None outside git.

    An uploaded or installed copy may be inside another repository: only a package whose files are tracked counts.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments],
                check=False,
                capture_output=True,
                text=True,
                timeout=GIT_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".")
    return None if commit is None or changes is None else {"commit": commit, "modified": bool(changes)}


def installed_version(name: str) -> str:
    """Return the version of an installed distribution; `unknown` where its metadata is damaged.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    try:
        return metadata.version(name) or UNKNOWN
    except (OSError, KeyError, ValueError):  # no file, no version, no text
        return UNKNOWN


def pin_requirements(distributions: list[str]) -> list[str]:
    """Return `name==version` of each installed distribution, as for a requirements file; a name alone if it is unknown.

    Raises:
        importlib.metadata.PackageNotFoundError: a distribution is not installed.
    """
    return [f"{name}=={installed_version(name)}".removesuffix(f"=={UNKNOWN}") for name in distributions]


def environment_info(package: Path) -> Environment:
    """Return everything needed to build the environment again, as plain values for JSON.

    Args:
        package: folder of our package.
    """
    versions: dict[str, str] = {}
    damaged = 0
    for installed in metadata.distributions():
        name = version = None
        with suppress(OSError, KeyError, ValueError):  # as in `installed_version`
            name, version = installed.metadata["Name"], installed.version
        if name and version:
            versions.setdefault(name, version)  # of two, Python imports the first
        else:
            damaged += 1
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "code": {"path": str(package), "digest": code_digest(package), "git": git_version(package)},
        "packages": dict(sorted(versions.items(), key=lambda item: item[0].lower())),
        "damaged_packages": damaged,
    }
