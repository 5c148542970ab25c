"""How much memory requests may take if no setting says it."""

import os
from pathlib import Path

import pytest

from fold.runtime import cgroups
from service.budget import SHARE, default_limit

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("membership", "files", "memory"),
    [
        ("0::/\n", {"memory.max": "max"}, MACHINE),
        ("0::/\n", {"memory.max": "400000000"}, 400_000_000),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "300000000"}, 300_000_000),
        ("5:memory:/docker/0\n", {"memory/memory.limit_in_bytes": "200000000"}, 200_000_000),
        ("5:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        ("", {}, MACHINE),
    ],
)
def test_the_default_is_a_share_of_what_the_control_groups_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], memory: int
) -> None:
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert default_limit() == memory // SHARE
