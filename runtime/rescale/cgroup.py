"""Where the limits of this process's control groups are told."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def control_groups(mount: Path = MOUNT, kind: str = "", own: Path = OWN) -> list[Path]:
    """Folders of the control groups that hold this process, the outermost first. Each one's limits hold for it.

    In a container the outermost is usually its own; a batch system's or a service's limit is in one further in.

    Args:
        mount: where control groups are mounted, of version 2, or of version 1 with a folder for each kind of limit.
        kind: empty for version 2; ``memory`` or ``cpu`` for version 1.
        own: the kernel's account of the groups of this process.
    """
    groups = [mount / kind]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return groups
    for line in lines:
        _, _, told = line.partition(":")
        kinds, _, path = told.partition(":")
        if kind in kinds.split(","):
            parts = PurePosixPath(path).parts[1:]
            # Groups outside what this process sees of the tree, and those that a container's mount begins with, are not there.
            for part in parts if ".." not in parts else ():
                if not (groups[-1] / part).is_dir():
                    break
                groups.append(groups[-1] / part)
    return groups
