"""Which versions of a model are chosen, and how it is seen that they changed."""

import shutil
from pathlib import Path

import pytest

from fold.errors import BnfoldError
from service.errors import NotReadyError
from service.repository.repository import Repository
from service.repository.versions import VersionPolicy, stamp
from service.settings import Settings, load_settings
from support.service import served
from support.service.reloading import corrupt
from support.service.serving import start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    served.net(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest", {"net/10": "READY"}),
        ("latest:2", {"net/2": "READY", "net/10": "READY"}),
        ("latest:9", {"net/1": "READY", "net/2": "READY", "net/10": "READY"}),
        ("all", {"net/1": "READY", "net/2": "READY", "net/10": "READY"}),
        ("1,2,7", {"net/1": "READY", "net/2": "READY"}),
        ("10", {"net/10": "READY"}),
        ("3,4", {"net/10": "UNAVAILABLE"}),
    ],
)
def test_the_policy_chooses_what_serves(folder: Path, policy: str, expected: dict[str, str]) -> None:
    for version in (2, 10):
        served.net(folder, version=version)

    chosen = Settings(repository=folder, device="cpu", repository_control="explicit", models="*", version_policy=policy)
    repository = Repository(chosen)
    repository.load()
    assert {str(entry): entry.state for entry in repository.entries()} == expected
    assert repository.left_out == [f"net/{number}" for number in (1, 2, 10) if f"net/{number}" not in expected]
    ready = [name for name, state in expected.items() if state == "READY"]
    if ready:
        assert str(repository.find("net")) == ready[-1], "who names no version gets the highest"
        assert repository.versions("net") == [name.removeprefix("net/") for name in ready]
    else:
        with pytest.raises(NotReadyError, match="3,4 chooses none of the versions that net has: 1, 2"):
            repository.find("net")


@pytest.mark.parametrize("text", ["newest", "latest:0", "1;2", "0", "all,1", "-1"])
def test_a_policy_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BnfoldError, match=r"settings: version_policy \(or BNFOLD_VERSION_POLICY\): "):
        load_settings(repository=tmp_path, version_policy=text)


def test_candidates_come_newest_first() -> None:
    assert VersionPolicy.of("all").candidates([1, 2, 10]) == [10, 2, 1]
    assert VersionPolicy.of("10,1,3").candidates([1, 2, 10]) == [10, 1]


def test_the_log_says_at_the_start_what_is_not_served_who_has_access_and_where_the_pages_are(folder: Path) -> None:
    served.net(folder, version=2)
    with start(folder, root_path="/team") as service:
        *_, left_out, access, pages, serving = service.lines
    assert left_out == "bnfold: version_policy latest leaves out net/1"
    assert access.startswith("bnfold: access is open: ")
    assert pages == f"bnfold: the page is {service.url}/team/, the API {service.url}/team/docs"
    assert serving == f"bnfold: serving net/2 on {service.url} (cpu)"


def test_a_stamp_tells_what_changed(folder: Path) -> None:
    seen = [stamp(folder / "net")[0]]
    assert stamp(folder / "net")[0] == seen[0]
    corrupt(folder / "net" / "1")
    seen.append(stamp(folder / "net")[0])
    served.net(folder, version=2)
    seen.append(stamp(folder / "net")[0])
    (folder / "net" / ".incoming-1").mkdir()
    assert stamp(folder / "net")[0] == seen[-1], "what is not published yet is none of a reader's business"
    shutil.rmtree(folder / "net" / "2")
    seen.append(stamp(folder / "net")[0])
    assert len({*seen[:3]}) == 3
    assert seen[3] == seen[1]
