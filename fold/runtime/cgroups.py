"""The control groups that limit this process (versions 1 and 2): its own, and those above it."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
"""The control groups of this process: `ID:CONTROLLERS:PATH`, where version 2 has no controllers."""


def control_groups(controller: str) -> Iterator[tuple[Literal[1, 2], Path]]:
    """The version and the folder of each control group that may limit what `controller` counts, such as `cpu`."""
    try:
        memberships = [line.split(":", 2) for line in MEMBERSHIP.read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, controllers, path in (membership for membership in memberships if len(membership) == 3):
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):  # in a container only the last is mounted
            inside = group.relative_to("/") if group.is_absolute() else group
            if not controllers:
                yield 2, CGROUPS / inside
            elif controller in controllers.split(","):
                yield 1, CGROUPS / controller / inside
