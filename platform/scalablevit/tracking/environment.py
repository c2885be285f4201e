"""What a run was made with: packages, interpreter, platform, and the version of our own code."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from scalablevit.config.packages import content_sum, package_files

GIT_TIMEOUT_S = 10

SHIPPED = ("recipes", "tune_spaces")
"""Folders of the package without code. In a checkout they are links, in an upload or an installed package copies."""


class GitVersion(TypedDict):
    """The state of a repository."""

    commit: str
    modified: bool
    """Whether files differ from the commit."""


class CodeVersion(TypedDict):
    """What code it is."""

    path: str
    digest: str
    """Of `code_digest`."""
    git: GitVersion | None


class Environment(TypedDict):
    """Content of a run's `environment.json`."""

    python: str
    platform: str
    code: CodeVersion
    packages: dict[str, str]
    """Version by name, sorted."""


def code_files(package: Path) -> list[Path]:
    """Return the files of our package that are code, sorted by relative path: none of the shipped recipes."""
    return package_files(package, SHIPPED)


def code_digest(package: Path) -> str:
    """Return the SHA-256 of our package's code: equal code, equal digest, wherever it is."""
    return content_sum(package, SHIPPED)


def git_version(package: Path) -> GitVersion | None:
    """Commit of the package's own repository and whether its files differ from it; None outside git.

    An uploaded or installed copy may lie inside somebody else's repository: only tracked files count.
    """

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(package), *arguments],
                check=False,
                capture_output=True,
                text=True,
                timeout=GIT_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".")
    return None if commit is None or changes is None else {"commit": commit, "modified": bool(changes)}


def pin_requirements(distributions: list[str]) -> list[str]:
    """`name==version` of installed distributions, as a requirements list.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    return [f"{name}=={metadata.version(name)}" for name in distributions]


def environment_info(package: Path) -> Environment:
    """Everything needed to build the environment again, ready for JSON.

    Args:
        package: folder of the package whose code version is wanted.
    """
    versions = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "code": {"path": str(package), "digest": code_digest(package), "git": git_version(package)},
        "packages": dict(sorted(versions.items(), key=lambda item: item[0].lower())),
    }
