"""The service's page in a real browser: what a visitor does, and what must not happen to one."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from fold.artifact import Preprocessing
from fold.convert import Target, convert
from fold.sources.source import Source
from support import ROOT
from support.service import served, serving

CHROMIUM = shutil.which("chromium") or ""
pytestmark = [pytest.mark.integration, pytest.mark.skipif(not CHROMIUM, reason="no chromium; .ci/run installs it")]

TABS = ("Try", "Proof", "BatchNorms", "Traffic", "Versions", "API")
HOSTILE = "<img src=x onerror=document.title='broken'>"
FIRST_PAINT = 100_000
COMMANDS = ("curl", "Python", "tritonclient", "gRPC")
LEAVE = '<meta http-equiv="refresh" content="0; url=/docs?attack">'
ATTACK = """<html lang="en"><head><title>A report</title></head><body><h1>Hostile</h1>
<script>parent.document.title = "broken"</script><script src="/static/api.js?attack"></script>
<img src="/docs?attack" onerror="parent.document.title = 'broken'"><svg onload="parent.document.title = 'broken'"></svg>
<iframe srcdoc="<script>parent.parent.document.title = 'broken'</script>"></iframe>
<a href="javascript:parent.document.title = 'broken'">Here</a><a href="/docs?attack" target="_top">There</a>
<form action="/docs?attack"><button>Send</button></form></body></html>"""
"""A report that tries to run scripts, to load, to send, and, with `LEAVE`, to lead away."""
RULES = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


def hostile(repository: Path) -> None:
    """A model all of whose names are HTML; its versions differ in what became of a BatchNorm."""
    inputs, outputs = [(HOSTILE, "FP32", -1, 1, 8, 8)], [("y", "FP32", -1, 64)]
    graph = served.graph_of([helper.make_node("Flatten", [HOSTILE], ["y"])], inputs, outputs)
    kept = {"name": HOSTILE, "node": "n", "channels": 1, "reason": HOSTILE, "culprit": HOSTILE}
    folded = {"name": f"{HOSTILE} 2", "node": HOSTILE, "channels": 1, "into": [HOSTILE]}
    for version, fold in (
        (1, {"folded": [folded], "kept": [kept]}),
        (2, {"folded": [], "kept": [kept, {**kept, "name": f"{HOSTILE} 2"}]}),
    ):
        served.publish(
            repository, "hostile", graph, inputs, outputs, fold={"batchnorms": 2, **fold}, version=version,
            labels=(HOSTILE, *map(str, range(63))), source={"file": HOSTILE}, versions={HOSTILE: HOSTILE},
            verdict={"equivalent": True, "message": HOSTILE},
            preprocessing=Preprocessing(input=HOSTILE, mode="L", height=8, width=8),
        )  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits` in two versions, `proven` as `bnfold fold` writes it, two inputs in `pair`, booleans in `flags`, and
    `broken`."""
    folder = tmp_path_factory.mktemp("page")
    for version in (1, 2):
        served.net(folder / "models", "digits", version=version)
    source = Source(folder / "models" / "digits" / "1" / "unfolded.onnx")
    assert convert(source, Target(folder / "models", "proven"), provider="cpu").path is not None
    for publish in (served.broken, served.others, hostile):
        publish(folder / "models")
    (folder / "models" / "hostile" / "1" / "report.html").write_text(LEAVE + ATTACK)
    (folder / "models" / "hostile" / "2" / "report.html").write_text(ATTACK)
    given, computed = [("on", "BOOL", -1, 2)], [("off", "BOOL", -1, 2)]
    flipped = served.graph_of([helper.make_node("Not", ["on"], ["off"])], given, computed)
    served.publish(folder / "models", "flags", flipped, given, computed)
    return folder / "models"


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[serving.Service]:
    with serving.start(repository, version_policy="all", grpc_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  # only these tests pay for it

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", RULES])
        yield found
        found.close()


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, service: serving.Service) -> Iterator[Opened]:
    """Opens a tab of a model: `opened("digits", "Proof")`. No script may fail, and nothing may break the policy."""
    with pages(browser) as visit:

        def tab(name: str, tab: str = "Try", version: str = "1", **options: Any) -> Any:
            key = {"API": "endpoints"}.get(tab, tab.lower())
            page = visit(f"{service.url}/#/{name}/{version}/{key}", **options)
            page.get_by_role("tab", name=tab, selected=True).wait_for()
            page.locator("#panel > *").first.wait_for()
            return page

        yield tab


@contextmanager
def pages(browser: Any) -> Iterator[Callable[..., Any]]:
    contexts, said = [], []

    def visit(url: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [text for text in said if "Failed to load resource" not in text] == []


def png(shape: tuple[int, ...] = (20, 30)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, shape, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_digit_is_drawn_and_both_models_say_the_same(opened: Opened, service: serving.Service) -> None:
    page = opened("digits")
    box = page.locator("canvas").bounding_box()
    middle, top = box["x"] + box["width"] / 2, box["y"]
    page.mouse.move(middle, top + 30)
    page.mouse.down()
    page.mouse.move(middle, top + box["height"] - 30, steps=5)
    page.mouse.up()
    answer = page.locator(".answer", has_text="models")
    answer.wait_for()
    drawn = page.locator("canvas").evaluate("(canvas) => canvas.toDataURL('image/png')")
    body = base64.b64decode(drawn.split(",")[1])
    (prediction,) = service.post(
        "/v1/models/digits:predict", content=body, headers={"Content-Type": "image/png"}
    ).json()["predictions"]
    assert answer.text_content() == f"Both models say {prediction['label']}."
    with Image.open(io.BytesIO(body)) as picture:
        assert 0.02 < np.asarray(picture.convert("L")).mean() / 255 < 0.5, "a bright stroke on black"
    row = page.get_by_role("region", name="Difference of both answers").get_by_role("row").nth(1)
    name, difference, margin = row.locator("td").all_text_contents()
    assert name == "scores"
    assert 0 <= float(difference) < 1e-4 < float(margin)
    assert page.get_by_text(re.compile(r"Queue .* ms, compute .* ms; .* ms in all")).is_visible()


def test_a_picture_is_dropped_chosen_and_refused(opened: Opened) -> None:
    page = opened("digits", permissions=["clipboard-read", "clipboard-write"])
    held: list[Any] = []
    page.route("**/*reference=true", lambda route: held.append(route))  # noqa: PLW0108  # Playwright binds no method of C
    drop = """([bytes, type]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "picture", { type }));
        document.querySelector(".drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }"""
    with page.expect_request("**/*reference=true"):
        page.evaluate(drop, [list(png()), "image/png"])
    page.locator(".answer").wait_for()
    assert page.get_by_alt_text("The picture that was sent").is_visible()
    page.get_by_text("Copy as a command").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.get_by_role("region", name="Command").text_content()
    assert "--data-binary @image.png" in copied
    page.evaluate(drop, [[1, 2, 3], "image/gif"])
    refused = page.get_by_text("picture is no PNG, JPEG or WebP")
    refused.wait_for()
    held[0].continue_()
    page.wait_for_load_state("networkidle")
    assert refused.is_visible(), "the reference's answer to what was dropped before does not replace it"
    page.unroute("**/*reference=true")
    page.get_by_label("Choose a picture").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no"})
    page.get_by_text("cannot be read as PNG").wait_for()
    paste = drop.replace('DragEvent("drop", { dataTransfer', 'ClipboardEvent("paste", { clipboardData')
    page.evaluate(paste, [list(png()), "image/png"])
    page.locator(".answer").wait_for()


def told_by(page: Any, kind: str) -> str:
    """What the command of the page writes that was copied to a shell, or to Python."""
    page.get_by_label("Kind of command").select_option(kind)
    text = page.get_by_role("region", name="Command").text_content()
    if kind == "curl":
        return subprocess.run(["sh", "-c", text], check=True, capture_output=True, text=True).stdout
    with (
        redirect_stdout(io.StringIO()) as written,
        ThreadPoolExecutor(1) as thread,
    ):  # Playwright has an event loop here
        thread.submit(exec, text, {}).result()
    return written.getvalue()


def test_each_command_sends_what_the_page_sent(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.png").write_bytes(png())
    np.save(tmp_path / "rows.npy", np.ones((2, 1, 8, 8), np.float32))
    page = opened("flags")
    page.get_by_label("on: BOOL, shape n × 2").fill("[true, false]")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("heading", name="Reference, float64").wait_for()
    page.get_by_text("Copy as a command").click()
    assert json.loads(told_by(page, "curl")) == {"predictions": [[False, True]]}
    assert told_by(page, "Python") == "{'predictions': [[False, True]]}\n"
    assert told_by(page, "tritonclient") == told_by(page, "gRPC") == "off [[False, True]]\n"

    page = opened("digits")
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "image.png")
    page.locator(".answer").wait_for()
    page.get_by_text("Copy as a command").click()
    [prediction] = json.loads(told_by(page, "curl"))["predictions"]
    assert page.locator(".answer").text_content().endswith(f"say {prediction['label']}.")
    assert told_by(page, "Python") == f"{ {'predictions': [prediction]} }\n"
    assert told_by(page, "tritonclient") == told_by(page, "gRPC")

    page = opened("proven")
    page.get_by_label("or rows of a .npy").set_input_files(tmp_path / "rows.npy")
    page.locator(".answer").wait_for()
    page.get_by_text("Copy as a command").click()
    rows = json.loads(told_by(page, "curl"))["predictions"]
    assert told_by(page, "Python") == f"{ {'predictions': rows} }\n"
    for kind in ("tritonclient", "gRPC"):
        name, _, found = told_by(page, kind).partition(" ")
        np.testing.assert_allclose(json.loads(found), rows, rtol=1e-6)
        assert name == "scores"


def test_numbers_from_the_example_a_file_and_what_is_no_json(
    opened: Opened, service: serving.Service, tmp_path: Path
) -> None:
    page = opened("pair")
    page.get_by_label("a: FP32, shape n × 2").fill("[1, 2]")
    page.get_by_label("b: FP32, shape n × 2").fill("[3, 5]")
    page.get_by_role("button", name="Predict").click()
    page.get_by_role("heading", name="Reference, float64").wait_for()
    shown = [json.loads(text) for text in page.locator(".two pre").all_text_contents() if text.startswith("{")]
    assert shown == [{"sum": [4, 7], "difference": [-2, -3]}] * 2
    page.get_by_label("b: FP32, shape n × 2").fill("[3,")
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("b: is not JSON").wait_for()

    np.save(tmp_path / "rows.npy", np.zeros((2, 1, 8, 8), np.float32))
    page = opened("proven")
    shown = json.loads(page.get_by_label("image: FP32, shape n × 1 × 8 × 8").input_value())
    assert np.ravel(shown).tolist() == service.get("/v2/models/proven/example").json()["inputs"][0]["data"]
    page.get_by_label("or rows of a .npy").set_input_files(tmp_path / "rows.npy")
    page.locator(".answer").wait_for()
    np.save(tmp_path / "other.npy", np.zeros((2, 3), np.float32))
    page.get_by_label("or rows of a .npy").set_input_files(tmp_path / "other.npy")
    page.get_by_text("[-1, 1, 8, 8] is expected").wait_for()


def test_a_proof_is_watched_kept_and_downloaded(opened: Opened, service: serving.Service, tmp_path: Path) -> None:
    page = opened("proven", "Proof")
    certificate = page.get_by_role("region", name="The parts of the certificate")
    assert certificate.get_by_text("does NOT hold").count() == 0
    assert certificate.get_by_text("when it was folded").count() == 4
    page.get_by_label("Rows to draw").fill("4")
    page.get_by_label("Seed").fill("11")
    page.get_by_label("B. Rounding").uncheck()
    page.get_by_role("button", name="Prove now").click()
    history = page.get_by_role("region", name="Checks since it was loaded")
    history.wait_for()
    steps = page.get_by_label("Progress").get_by_role("listitem").all_text_contents()
    assert any(step.startswith("part A") for step in steps)
    assert any(step.startswith("C: scores") for step in steps)
    assert any(step.startswith("D: scores") for step in steps)
    begun = next(place for place, step in enumerate(steps) if step.startswith("part A"))
    assert any(step.startswith("A: normal") for step in steps[begun:]), "it is told when it is known"
    made = service.get("/v2/models/proven/equivalence").json()["checks"]
    assert [(each["verdict"]["samples"], each["verdict"]["seed"]) for each in made] == [(4, 11)]
    assert made[0]["verdict"]["message"] in history.text_content()
    assert certificate.get_by_text("when it was folded").count() == 1, "B is as old as the model"
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as JSON").click()
    download.value.save_as(tmp_path / "proof.json")
    assert json.loads((tmp_path / "proof.json").read_text())["checks"] == made

    page.get_by_role("button", name="Show the error by layer").click()
    layers = page.get_by_role("region", name="Error by layer")
    page.get_by_text("The numbers").click()
    found = service.get("/v2/models/proven/layers").json()["layers"]
    assert layers.locator("tbody code").all_text_contents() == [layer["name"] for layer in found]
    assert page.get_by_role("img", name=f"{len(found)} layers, 8 rows").is_visible()

    np.save(tmp_path / "rows.npy", np.ones((3, 1, 8, 8), np.float32))
    assert certificate.get_by_text("not computed").count() == 1, "the search"
    page.get_by_label("or your own rows, a .npy").set_input_files(tmp_path / "rows.npy")
    page.get_by_label("E. Search").check()
    page.get_by_label("Seconds of the search").fill("0.2")
    page.get_by_role("button", name="Prove now").click()
    page.get_by_text("equivalent over 3 samples").first.wait_for()
    assert certificate.get_by_text("not computed").count() == 0
    assert history.locator("tbody tr").count() == 2
    page.get_by_label("or your own rows, a .npy").set_input_files([])
    page.get_by_label("Rows to draw").fill("1000")
    page.get_by_role("button", name="Prove now").click()
    page.get_by_text("samples is 1000; expected a whole number from 1 to 256").wait_for()


def test_a_broken_model_says_why_and_the_list_is_searched(opened: Opened) -> None:
    page = opened("broken")
    page.get_by_text("model.onnx: was changed after it was written").first.wait_for()
    models = page.get_by_label("Models", exact=True).get_by_role("link")
    assert models.count() == 9
    page.get_by_label("Search models").fill("DIG")
    assert models.all_text_contents() == ["digitsv2 cpu"]
    page.get_by_label("Search models").fill("nothing")
    page.get_by_text("No model has this name.").wait_for()
    page.get_by_role("tab", name="Versions").click()
    page.get_by_role("region", name="Versions", exact=True).get_by_text("was changed after it was written").wait_for()


def test_versions_are_switched_compared_and_stay_in_the_url(opened: Opened) -> None:
    page = opened("digits", "Versions", "2")
    page.get_by_label("Version", exact=True).select_option("1")
    page.wait_for_url("**/#/digits/1/versions")
    table = page.get_by_role("region", name="Versions", exact=True)
    table.get_by_text("READY").nth(1).wait_for()
    page.get_by_text("Where version 2 comes from").click()
    digest = page.get_by_role("region", name="SHA-256 of its files, version 2").get_by_text(
        re.compile("^[0-9a-f]{64}$")
    )
    assert digest.count() == 2
    page.get_by_role("tab", name="Traffic").click()
    page.wait_for_url("**/#/digits/1/traffic")
    page.go_back()
    page.get_by_role("tab", name="Versions", selected=True).wait_for()


def test_two_versions_side_by_side(opened: Opened) -> None:
    page = opened("hostile", "Versions", "2")
    folds = page.get_by_role("region", name="BatchNorms that differ")
    folds.wait_for()
    assert [page.get_by_label(name, exact=True).input_value() for name in ("First", "Second")] == ["1", "2"]
    row = folds.locator("tbody tr").all()
    assert [each.locator("td").all_text_contents() for each in row] == [
        [f"{HOSTILE} 2", f"folded into {HOSTILE} (1 channels)", f"kept: {HOSTILE} (1 channels)"]
    ]
    page.get_by_role("button", name="Send 20 requests to each").click()
    answer = page.get_by_role("row", name="Answer, median of 20")
    answer.wait_for()
    first, second = answer.locator("td").all_text_contents()[1:]
    assert all(float(text.removesuffix(" ms")) > 0 for text in (first, second))
    page.get_by_label("First", exact=True).select_option("2")
    page.get_by_text("The same became of every BatchNorm in both versions.").wait_for()
    page = opened("proven", "Versions")
    page.get_by_text("With a second version here, the two can be compared.").wait_for()


def test_a_batchnorm_is_drawn(opened: Opened) -> None:
    page = opened("proven", "BatchNorms")
    name = page.get_by_role("region", name="BatchNorms").locator("tbody button")
    name.click()
    detail = page.get_by_role("region", name=re.compile("^BatchNorm "))
    detail.wait_for()
    assert page.evaluate("document.activeElement.id") == "batchnorm"
    assert detail.get_by_role("img", name=re.compile(r"^Before: .*\(Conv\) to .*\(BatchNormalization\)")).is_visible()
    after = detail.get_by_role("img", name=re.compile("^After: ")).get_attribute("aria-label")
    assert "(Conv) to" in after
    assert "BatchNormalization" not in after
    for text in (
        "γ of 8 channels",
        "β of 8 channels",
        "μ of 8 channels",
        "σ² of 8 channels",
        "γ/√(σ² + ε) of 8 channels",
    ):
        assert detail.get_by_role("img", name=f"{text}, from").is_visible()
    detail.get_by_role("button", name="Close").click()
    assert detail.count() == 0
    assert page.evaluate("document.activeElement.textContent") == name.text_content()
    page = opened("digits", "BatchNorms")
    page.get_by_role("button", name="bn", exact=True).click()
    page.get_by_text("its reference has no BatchNorm of this name").wait_for()


def test_batchnorms_are_sorted_filtered_and_inspected(opened: Opened) -> None:
    page = opened("proven", "BatchNorms")
    page.get_by_text("1 of 1 BatchNorms are folded, 0 are kept.").wait_for()
    page.get_by_label("Kept").check()
    page.get_by_text("No BatchNorm is of this kind.").wait_for()
    page.get_by_label("Folded").check()
    page.get_by_role("button", name="Show statistics").click()
    page.get_by_role("img", name=re.compile("σ² from 0.5.* to")).wait_for()
    page.get_by_role("button", name="Channels").click()
    assert page.get_by_role("columnheader", name="Channels").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Channels").click()
    assert page.get_by_role("columnheader", name="Channels").get_attribute("aria-sort") == "descending"
    page = opened("hostile", "BatchNorms")
    names = page.get_by_role("region", name="BatchNorms").locator("tbody button")
    page.get_by_role("button", name="BatchNorm", exact=True).focus()
    for expected in ([HOSTILE, f"{HOSTILE} 2"], [f"{HOSTILE} 2", HOSTILE]):
        page.keyboard.press("Enter")
        assert names.all_text_contents() == expected


def test_traffic_and_the_api_tab_show_what_the_service_answers(opened: Opened, service: serving.Service) -> None:
    for _ in range(3):
        assert service.post("/v2/models/single/infer", json={}).status_code == 400
    page = opened("single", "Traffic")
    errors = page.get_by_role("region", name="Refusals and errors")
    errors.wait_for()
    assert errors.get_by_role("row").nth(1).locator("td").all_text_contents() == ["bad request", "3"]
    assert page.get_by_role("img", name=re.compile(r"^Memory of the process: \d+ MB now")).is_visible()
    assert page.get_by_role("img", name=re.compile("^Memory of requests in flight: .* are allowed")).is_visible()
    assert page.get_by_text("GPU").count() == 0
    assert page.get_by_text("0 rows compared with the reference, 0 disagreements").is_visible()
    page = opened("single", "API")
    page.get_by_label("Endpoint").select_option("POST /v2/models/{name}/infer")
    assert page.get_by_label("Path").input_value() == "v2/models/single/infer"
    page.get_by_role("button", name="Send").click()
    page.get_by_text(re.compile("^200 OK in .* ms$")).wait_for()
    assert json.loads(page.get_by_role("region", name="Answer").text_content())["outputs"][0]["name"] == "y"
    page.get_by_text("Schemas", exact=True).click()
    schemas = page.locator("details pre").all_text_contents()
    assert "binary_data_output" in schemas[2], "of the body, after those of the name and of a header"
    page.get_by_text("Answer, application/json").wait_for()
    page.get_by_label("Body").fill("{}")
    page.get_by_role("button", name="Send").click()
    page.get_by_text(re.compile("^400 Bad Request in .* ms$")).wait_for()


def with_a_gpu(route: Any) -> None:
    """The service's answer about its traffic, as on a machine with a GPU."""
    answer = route.fetch()
    told = answer.json()
    told["process"]["gpus"] = [
        {"gpu": 0, "memory_total_bytes": 80e9, "memory_used_bytes": [None, 2e9], "utilization": [None, 0.25]}
    ]
    route.fulfill(response=answer, json=told)


def test_traffic_is_drawn_again_and_the_focus_stays(browser: Any, service: serving.Service) -> None:
    body = {"inputs": [{"name": "index", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}]}
    with pages(browser) as visit:
        page = visit("about:blank")
        page.clock.install()
        page.route("**/v2/traffic", with_a_gpu)
        page.goto(f"{service.url}/#/pick/1/traffic")
        page.get_by_text("0 in all, 0 rows").wait_for()
        assert page.get_by_role("img", name="Memory of GPU 0: 2 GB of 80 GB now").is_visible()
        assert page.get_by_role("img", name="GPU 0 in use: 25 % now").is_visible()
        for requests in (1, 2):
            assert service.post("/v2/models/pick/infer", json=body).status_code == 200
            page.clock.run_for(10_000)
            page.get_by_text(f"{requests} in all, {3 * requests} rows").wait_for()
            batches = page.get_by_role("region", name="Rows of a batch")
            assert batches.get_by_role("row").nth(1).locator("td").all_text_contents() == ["up to 4", "", str(requests)]
            if requests == 1:
                batches.focus()
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Rows of a batch"
        for title in ("Waiting in the queue", "Computing a batch"):
            assert page.get_by_role("img", name=re.compile(f"^{title}: p50 .* ms, p95 .* ms, p99 .* ms$")).is_visible()
        link = page.get_by_role("link", name="pick")
        link.focus()
        with page.expect_response("**/v2/traffic"):
            page.clock.run_for(10_000)
        page.wait_for_load_state("networkidle")
        link.get_by_role("img", name="2 requests in the last quarter of an hour").wait_for()
        assert link.evaluate("(link) => link === document.activeElement")


def test_with_a_token_commands_run_and_reports_are_shown(
    browser: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret-user")
    chosen = {"version_policy": "all", "grpc_port": 0, "root_path": "/team/bnfold"}
    with serving.start(repository, tokens="secret-user", **chosen) as guarded, pages(browser) as visit:
        page = visit(f"{guarded.url}/team/bnfold/#/pair/1/try", viewport={"width": 390, "height": 800})
        page.get_by_label("Token", exact=True).wait_for()
        assert violations(page) == []
        page.get_by_label("Token", exact=True).fill("secret-user")
        page.keyboard.press("Enter")
        page.get_by_label("a: FP32, shape n × 2").fill("[1, 2]")
        page.get_by_label("b: FP32, shape n × 2").fill("[3, 5]")
        page.get_by_role("button", name="Predict").click()
        page.get_by_text("Copy as a command").click()
        told = [told_by(page, kind) for kind in COMMANDS]
        assert json.loads(told[0]) == {"predictions": [{"sum": [4, 7], "difference": [-2, -3]}]}
        assert told[1] == f"{json.loads(told[0])}\n"
        assert told[2] == told[3] == "sum [[4.0, 7.0]]\ndifference [[-2.0, -3.0]]\n"

        page.get_by_role("link", name="proven").click()
        page.get_by_role("link", name="Report").click()
        page.wait_for_url("**/#/proven/1/report")
        report = page.frame_locator("iframe")
        for _ in range(2):
            report.get_by_role("button", name="Part").click()
        assert report.locator("td b").all_text_contents() == ["E", "D", "C", "B", "A"]
        assert report.get_by_role("link").count() == 0
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        page.get_by_role("link", name="Inspection").click()
        report.get_by_role("heading", name="Suspicions").wait_for()
        page.get_by_role("tab", name="Try").focus()
        page.keyboard.press("ArrowRight")
        page.get_by_role("tab", name="Proof", selected=True).wait_for()
        page.go_back()
        report.get_by_role("heading", name="Suspicions").wait_for()


def test_a_hostile_report_does_nothing(browser: Any, service: serving.Service, repository: Path) -> None:
    """As a page of its own, and in the page of a service that wants tokens."""
    with serving.start(repository, tokens="secret-user", version_policy="all") as guarded:
        context = browser.new_context()  # without a look at its console, where the browser tells what it blocked
        page, answered = context.new_page(), list[str]()
        page.on("response", lambda response: answered.append(response.url))
        page.goto(f"{guarded.url}/#/hostile/1/report")
        page.get_by_label("Token", exact=True).fill("secret-user")
        page.get_by_role("button", name="Use").click()
        report = page.frame_locator("iframe").first
        report.get_by_role("heading", name="Hostile").wait_for()
        for role, name in (("link", "Here"), ("link", "There"), ("button", "Send")):
            report.get_by_role(role, name=name, exact=True).click()
        page.wait_for_load_state("networkidle")
        assert page.title() == "hostile: bnfold"
        assert report.get_by_role("heading", name="Hostile").is_visible()
        assert [url for url in answered if "attack" in url] == [], "what is blocked is asked of nobody"
        page.goto(f"{service.url}/models/hostile/versions/2/report")
        page.get_by_role("link", name="Here", exact=True).click()
        assert page.title() == "A report"
        context.close()


def test_a_token_is_asked_for_kept_in_the_page_and_an_admins_unloads(browser: Any, repository: Path) -> None:
    chosen = {"tokens": "secret-user", "admin_token": "secret-admin", "repository_control": "explicit", "models": "*"}
    chosen["root_path"] = "/team/bnfold"
    with serving.start(repository, **chosen) as guarded, pages(browser) as visit:
        page = visit(f"{guarded.url}/team/bnfold/#/pair/1/versions")
        page.get_by_label("Token", exact=True).fill("wrong")
        page.get_by_role("button", name="Use").click()
        page.get_by_text("The service does not know this token.").wait_for()
        page.get_by_label("Token", exact=True).fill("secret-user")
        page.get_by_role("button", name="Use").click()
        page.get_by_role("button", name="Unload").click()
        page.get_by_text("this token is not an admin's").wait_for()
        page.get_by_label("Token of an admin").fill("wrong")
        page.get_by_role("button", name="Unload").click()
        page.get_by_text("the token is not known here").wait_for()
        page.get_by_label("Token of an admin").fill("secret-admin")
        page.get_by_role("button", name="Unload").click()
        page.get_by_role("region", name="Versions", exact=True).get_by_text("UNAVAILABLE").wait_for()
        assert "secret" not in page.evaluate(
            "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
        )
        page.get_by_role("button", name="Load or reload").click()
        page.get_by_role("region", name="Versions", exact=True).get_by_text("READY").wait_for()
        page.reload()
        page.get_by_label("Token", exact=True).wait_for()


def test_another_models_unload_is_listed_and_leaves_the_tab_as_it_is(browser: Any, repository: Path) -> None:
    with (
        serving.start(repository, admin_token="secret", repository_control="explicit", models="*") as changing,
        pages(browser) as visit,
    ):
        page = visit("about:blank")
        page.clock.install()
        page.goto(f"{changing.url}/#/pair/1/try")
        page.get_by_label("a: FP32, shape n × 2").fill("[7, 7]")
        for name in ("single", "pair"):
            headers = {"Authorization": "Bearer secret"}
            assert changing.post(f"/v2/repository/models/{name}/unload", headers=headers).status_code == 200
            page.clock.run_for(10_000)
            page.get_by_role("link", name=name).get_by_text("unavailable").wait_for()
            if name == "single":
                assert page.get_by_label("a: FP32, shape n × 2").input_value() == "[7, 7]"
        page.get_by_text("This version does not serve: unloaded").wait_for()


def test_the_keyboard_is_enough(opened: Opened) -> None:
    page = opened("pair")
    page.get_by_label("a: FP32, shape n × 2").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the model"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.get_by_role("tab", name="Try").focus()
    for name in TABS[1:]:
        page.keyboard.press("ArrowRight")
        page.get_by_role("tab", name=name, selected=True).wait_for()
        assert page.evaluate("document.activeElement.textContent") == name
    page.keyboard.press("Home")
    page.get_by_label("a: FP32, shape n × 2").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.role") == "tabpanel"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Predict"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Reference, float64").wait_for()


def violations(page: Any) -> list[tuple[str, str]]:
    """The rules of axe that are broken, each with the first element that breaks it."""
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415  # as above

    return [(each["id"], each["nodes"][0]["html"]) for each in Axe().run(page).response["violations"]]


@pytest.mark.parametrize("name", ["report", "inspection"])
def test_reports_are_linked_sorted_and_look_like_the_page(opened: Opened, name: str) -> None:
    page = opened("proven", viewport={"width": 390, "height": 800}, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    expected = page.evaluate(ground)
    page.get_by_role("link", name=name.capitalize()).click()
    page.get_by_role("heading", level=1).wait_for()
    assert page.evaluate(ground) == expected
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    if name == "report":
        heading = page.get_by_role("button", name="Part")
        heading.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        letters = page.locator("td b").all_text_contents()
        assert letters == ["E", "D", "C", "B", "A"]
        page.get_by_role("link", name="All models").click()
        page.get_by_role("tab", name="Try", selected=True).wait_for()
        page.go_back()
    assert violations(page) == []


def settled(page: Any) -> None:
    """Wait until the tab has what it shows."""
    page.locator("#panel > *").first.wait_for()
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened: Opened, service: serving.Service, scheme: str) -> None:
    page = opened("digits", color_scheme=scheme, reduced_motion="reduce")
    found = {}
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        settled(page)
        if name == "Try":
            page.get_by_label("Choose a picture").set_input_files(
                {"name": "a.png", "mimeType": "image/png", "buffer": png()}
            )
            page.locator(".answer").wait_for()
        found[name] = violations(page)
    assert page.evaluate("getComputedStyle(document.querySelector('[role=tab]')).transitionDuration") == "0s"
    page.goto(f"{service.url}/docs")
    found["docs"] = violations(page)
    page = opened("proven", "Proof", color_scheme=scheme, reduced_motion="reduce")
    page.get_by_role("button", name="Show the error by layer").click()
    page.get_by_text("The numbers").click()
    found["layers"] = violations(page)
    page.get_by_role("tab", name="BatchNorms").click()
    page.get_by_role("region", name="BatchNorms").locator("tbody button").click()
    page.get_by_role("region", name=re.compile("^BatchNorm ")).wait_for()
    found["drawn"] = violations(page)
    assert not any(found.values()), found


@pytest.mark.parametrize("width", [360, 390, 2560])
def test_no_width_scrolls_sideways(opened: Opened, width: int) -> None:
    page = opened("proven", viewport={"width": width, "height": 800})
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        settled(page)
        if name == "Proof":
            page.get_by_role("button", name="Show the error by layer").click()
            page.get_by_text("The numbers").click()
        if name == "BatchNorms":
            page.get_by_role("region", name="BatchNorms").locator("tbody button").click()
            page.get_by_role("region", name=re.compile("^BatchNorm ")).wait_for()
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, name


def test_names_from_models_stay_text(opened: Opened) -> None:
    page = opened("hostile")
    page.get_by_label("Choose a picture").set_input_files({"name": HOSTILE, "mimeType": "image/png", "buffer": png()})
    page.locator(".answer").wait_for()
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        settled(page)
        if name in ("Proof", "BatchNorms", "Versions"):
            assert HOSTILE in page.locator("#panel").text_content(), name
        assert page.locator("img[src=x]").count() == 0
        assert "\u202e" not in page.locator("#panel").text_content(), "turns the text around it"
        assert page.title() == "hostile: bnfold"


def test_without_scripts_the_page_is_read(opened: Opened, browser: Any, service: serving.Service) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(service.url)
    assert page.get_by_role("heading", name="digits").count() == 2
    assert page.get_by_text("was changed after it was written").is_visible()
    assert page.locator("img[src=x]").count() == 0
    context.close()


def asked_in_a_minute(page: Any, service: serving.Service) -> list[tuple[str, str]]:
    """Method and path of each request of a page whose clock is held. Later ones are added to the list."""
    asked: list[tuple[str, str]] = []
    page.on("request", lambda request: asked.append((request.method, request.url.removeprefix(service.url))))
    page.clock.run_for(60_000)
    page.wait_for_load_state("networkidle")
    return asked


def test_the_first_paint_is_small_and_a_hidden_page_asks_nothing(browser: Any, service: serving.Service) -> None:
    with pages(browser) as visit:
        page = visit("about:blank")
        page.clock.install()
        page.goto(f"{service.url}/#/pair/1/try")
        page.get_by_label("a: FP32, shape n × 2").wait_for()
        page.wait_for_load_state("networkidle")
        loaded = page.evaluate(
            "[...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]"
            ".map((each) => each.encodedBodySize)"
        )
        assert sum(loaded) < FIRST_PAINT
        asked = asked_in_a_minute(page, service)
        assert 0 < len(asked) <= 14, "two small requests every ten seconds"
        page.evaluate("Object.defineProperty(document, 'visibilityState', { value: 'hidden' })")
        page.clock.run_for(20_000)
        asked.clear()
        page.clock.run_for(600_000)
        assert asked == []


def test_an_open_page_asks_what_the_benchmark_of_pages_asks(browser: Any, service: serving.Service) -> None:
    with pages(browser) as visit:
        page = visit("about:blank")
        page.clock.install()
        page.goto(f"{service.url}/#/pair/1/traffic")
        page.get_by_text("Memory of the process").wait_for()
        page.wait_for_load_state("networkidle")
        asked = asked_in_a_minute(page, service)
    told = re.findall(r'\("(GET|POST)", "(/v2/[^"]*)"', (ROOT / "benchmarks" / "pages.py").read_text())
    expected = [(method, path.replace("/net/", "/pair/")) for method, path in told]
    assert set(asked) == set(expected)
    assert len(asked) <= 7 * len(expected)
