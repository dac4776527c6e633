"""Which distributions are installed, and whether they meet a requirement."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def package_problem(requirement: str, packages: Mapping[str, str] | None) -> str | None:
    """Why the package ``requirement`` (``"liger-kernel>=0.8"``) is not met by ``packages``, or None.

    None for packages that cannot be known, and where the requirement's marker excludes this machine.
    """
    wanted = Requirement(requirement)
    if packages is None or (wanted.marker is not None and not wanted.marker.evaluate()):
        return None
    version = packages.get(canonicalize_name(wanted.name))
    install = f"pip install '{requirement}'"
    if version is None:
        return f"needs the package {wanted.name}, which is not installed: {install}"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"needs {requirement}, and {wanted.name} {version} is installed: {install}"
    return None


def installed_packages() -> dict[str, str]:
    """Every distribution that this Python can import, by canonical name, with its version."""
    # Installing or removing a package changes its folder's time, so a package added while we run is seen.
    folders = tuple((path, os.stat(path).st_mtime_ns) for path in sys.path if os.path.isdir(path))
    return dict(_installed(folders))


@functools.lru_cache(maxsize=1)
def _installed(folders: tuple[tuple[str, int], ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        facts = distribution.metadata
        # The first on sys.path is the one that an import finds; a half-removed package has neither name nor version.
        if facts and "Name" in facts and "Version" in facts:
            found.setdefault(canonicalize_name(facts["Name"]), facts["Version"])
    return found
