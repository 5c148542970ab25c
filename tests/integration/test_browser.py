"""Pages that are written as files, in a real browser: the report beside a model, and the inspection's."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fold.convert import Target, convert
from fold.inspection import inspect_graph
from fold.reports import write_inspection_page
from fold.sources.source import Source
from support.folding import architecture, randomise, unfolded

CHROMIUM = shutil.which("chromium") or ""
pytestmark = [pytest.mark.integration, pytest.mark.skipif(not CHROMIUM, reason="no chromium; .ci/run installs it")]


def dump(url: str, profile: Path, *extra: str) -> str:
    """The document after the browser has loaded it, without a complaint on its console. Every name but the loopback
    address fails to resolve."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-dev-shm-usage --virtual-time-budget=3000 "
        "--enable-logging=stderr"
    )
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    command = [CHROMIUM, *flags.split(), rules, f"--user-data-dir={profile}", *extra, "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory, pictures) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    torch.save(randomise(architecture("vgg_after"), seed=0, hostile=False).state_dict(), folder / "m.pt")
    source = Source(folder / "m.pt", "models.vgg_after:vgg_after", (), ["1,8,8"])
    assert convert(source, Target(folder / "repository", "digits")).path is not None
    return folder / "repository"


MEASURE = """<script>
    const root = document.documentElement, pictures = [...document.querySelectorAll("svg")];
    const boxes = (svg) => [...svg.querySelectorAll("text")].map((text) => [text, text.getBoundingClientRect()]);
    const cut = pictures.flatMap((svg) => {
        const outer = svg.getBoundingClientRect();
        return boxes(svg).filter(([, box]) => box.left < outer.left - 1 || box.right > outer.right + 1);
    });
    const covered = pictures.flatMap((svg) => boxes(svg).filter(([one, a]) => boxes(svg).some(([other, b]) =>
        one != other && a.left < b.right && b.left < a.right && a.top < b.bottom - 3 && b.top < a.bottom - 3)));
    parent.postMessage({
        width: innerWidth,
        overflow: root.scrollWidth - root.clientWidth,
        requests: performance.getEntriesByType("resource").length,
        ink: getComputedStyle(document.querySelector("svg text")).fill,
        cut: cut.map(([text]) => text.textContent),
        covered: covered.map(([text]) => text.textContent),
        pictures: pictures.filter((svg) => svg.clientHeight > 100).length,
    }, "*");
</script>"""
"""Added to a copy of the report, which has no script of its own."""
FRAME = """<!doctype html><p></p><script>
    onmessage = (message) => { document.querySelector("p").textContent = JSON.stringify(message.data); };
</script><iframe src="report.html" width="WIDTH" height="900" style="border: 0"></iframe>"""
"""A browser's own window does not get as narrow as a phone."""
SCHEMES = {"light": "1", "dark": "0"}


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_report(repository, tmp_path, width, scheme) -> None:
    report = (repository / "digits" / "1" / "report.html").read_text()
    assert "equivalent over 16 samples" in report
    assert "pads its input with zeros" in report
    assert "<h2>Folded</h2>" in report
    (tmp_path / "report.html").write_text(report.replace("</body>", f"{MEASURE}</body>"))
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    flags = ("--window-size=1400,1000", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}")
    document = dump((tmp_path / "frame.html").as_uri(), tmp_path / "profile", "--hide-scrollbars", *flags)
    found = re.search(r"<p>(\{.*\})</p>", document)
    assert found is not None
    assert json.loads(found[1]) == {
        "width": width,
        "overflow": 0,
        "requests": 0,
        "ink": {"light": "rgb(34, 33, 29)", "dark": "rgb(231, 229, 223)"}[scheme],
        "cut": [],
        "covered": [],
        "pictures": 5,
    }


def test_the_inspections_page_fits_a_phone_and_loads_nothing(tmp_path) -> None:
    write_inspection_page(tmp_path / "page.html", inspect_graph(unfolded("densenet")), "net.pt")
    measure = """<script>
        const root = document.documentElement;
        const wide = [root, ...document.querySelectorAll(".scroll")].map((each) => each.scrollWidth - each.clientWidth);
        parent.postMessage([Math.max(...wide), performance.getEntriesByType("resource").length], "*");
    </script>"""
    page = (tmp_path / "page.html").read_text().replace("</body>", f"{measure}</body>")
    (tmp_path / "report.html").write_text(page)
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", "360"))
    document = dump((tmp_path / "frame.html").as_uri(), tmp_path / "profile", "--hide-scrollbars")
    assert "<p>[0,0]</p>" in document
