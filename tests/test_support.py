"""What tests stand on: an export that is kept is never one of other sources or libraries."""

from pathlib import Path

from support.folding import EXPORTERS, export_digest

FILES = ("models/cnn.py", "fold/graph/lift.py", "fold/arrays.py", "fold/sources/export.py", "tests/support/folding.py")


def test_the_digest_of_an_export_changes_with_every_source_and_library(tmp_path: Path) -> None:
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x = 1\n")
    versions = dict.fromkeys(EXPORTERS, "1.0")
    before = export_digest(tmp_path, versions)
    assert export_digest(tmp_path, dict(reversed(versions.items()))) == before
    digests = {before}
    for file in FILES:
        (tmp_path / file).write_text("x = 2\n")
        digests.add(export_digest(tmp_path, versions))
    for library in EXPORTERS:
        digests.add(export_digest(tmp_path, {**versions, library: "1.1"}))
    (tmp_path / "fold" / "new.py").write_text("")
    digests.add(export_digest(tmp_path, versions))
    assert len(digests) == 1 + len(FILES) + len(EXPORTERS) + 1
