"""The page at `/`: which models serve, what they take, what was folded, and what was proven.

It can be read without its script, which adds everything that a visitor does. Nothing is loaded from elsewhere. Jinja is
imported at the first visit.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse

from fold.artifact import DTYPES, Manifest, TensorSpec, open_file
from fold.errors import BnfoldError, is_out_of_files, shown
from service.errors import NotFoundError, OutOfFilesError, ServiceError
from service.headers import Headers
from service.operations import package_version
from service.repository import Model, Repository

if TYPE_CHECKING:
    from jinja2 import Template

HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}
LIMITS = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
LONGEST_EXAMPLE = 400
"""Characters of a row that a page shows."""


class Page(HTMLResponse):
    """A page that loads what this service sends and nothing else, and is shown in no other page's frame. Scripts and
    styles in the page itself do not run: what a file called its tensors stays text."""

    policy = f"default-src 'self'; img-src 'self' data: blob:; object-src 'none'; {LIMITS}"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers({**HEADERS, "content-security-policy": self.policy, **(headers or {})})


class ReportPage(Page):
    """A page whose style stands in it. It gets a link back to the models, and one script of this service, which sorts
    its tables."""

    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; img-src 'self' data:; {LIMITS}"
    added = (
        '\n<nav><a href="../../../../">All models</a></nav>\n'
        '<script type="module" src="../../../../static/sorted.js"></script>'
    )

    def render(self, content: Any) -> bytes | memoryview:
        head, start, body = content.partition("<body>")
        return super().render(f"{head}{start}{self.added if start else ''}{body}")


def wants_page(path: str, headers: Headers) -> bool:
    """Whether a browser opens the page. It brings no token, even if the service needs one."""
    return path == "/" and any(name == b"accept" and b"text/html" in value for name, value in headers)


def locked_page(error: ServiceError) -> Page:
    """The page of a service that needs a token: the script asks for it."""
    told = {name.decode(): value.decode() for name, value in error.headers()}
    return Page(template("locked.html").render(reason=str(error)), error.status, told)


def render_page(repository: Repository, *, ready: bool, base_url: str) -> str:
    return template("index.html").render(
        version=package_version(),
        ready=ready,
        base_url=base_url.rstrip("/"),
        models=[_model(model, base_url.rstrip("/")) for model in repository.ready()],
        broken=repository.broken(),
    )


def read_report(folder: Path, model: str) -> str:
    """The report that `bnfold fold` wrote into the folder of a version. Raises `NotFoundError` if there is none that
    may be shown: links may lead anywhere, and a pipe would never end."""
    try:
        with open_file(folder, "report.html") as file:
            return file.read().decode()
    except FileNotFoundError as error:
        raise NotFoundError(f"model {model} has no report.html") from error
    except (BnfoldError, OSError, UnicodeDecodeError) as error:
        if is_out_of_files(error):
            raise OutOfFilesError from error
        raise NotFoundError(f"model {model} has no report.html that can be read as a text of its folder") from error


@cache
def template(name: str) -> "Template":
    import jinja2  # noqa: PLC0415  # most services show no page

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=shown
    )
    return environment.get_template(name)


def _model(model: Model, base_url: str) -> dict[str, Any]:
    manifest, checked = model.manifest, model.proof is not None
    tried = ", and tried here before it served" if model.session.has_canary and not checked else ""
    verdicts = _verdicts(model)
    when, newest = verdicts[0]
    parts = _parts(verdicts)
    return {
        "name": model.name,
        "version": model.version,
        "provider": model.session.provider,
        "inputs": [_tensor(spec) for spec in manifest.inputs],
        "outputs": [_tensor(spec) for spec in manifest.outputs],
        "batchnorms": manifest.fold.get("batchnorms", 0),
        "folded": len(manifest.fold.get("folded", ())),
        "kept": manifest.fold.get("kept", ()),
        "equivalent": newest.get("equivalent", False) and all(holds for _, holds, _ in parts),
        "message": newest.get("message", ""),
        "checked": when + tried,
        "parts": parts,
        "shadow": model.observer,
        "images": manifest.preprocessing is not None,
        "predict": curl(f"{base_url}/v1/models/{model.name}:predict", {"instances": [example_row(manifest)]}),
    }


def _verdicts(model: Model) -> list[tuple[str, dict[str, Any]]]:
    """When it was made, and the verdict: of the checks since it was loaded, the last one first, and of the fold."""
    made = [(datetime.fromtimestamp(proof.at, UTC), proof.verdict) for proof in reversed(model.checks)]
    checks = [(time.strftime("%Y-%m-%d %H:%M:%S UTC"), verdict) for time, verdict in made]
    return [*checks, ("when it was folded", model.manifest.verdict)]


def _parts(verdicts: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, bool, str]]:
    """Of each part of the certificate the newest result: its name, whether it holds, and when it was computed."""
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "algebra": ("algebra", lambda found: bool(found["holds"])),
        "rounding": ("rounding", lambda found: bool(found["holds"])),
        "outputs": ("error as served", lambda found: all(output.get("equivalent", True) for output in found)),
        "decisions": (
            "decisions",
            lambda found: all(decided.get("flips", 0) == decided.get("excused", 0) for decided in found),
        ),
    }
    parts = []
    for key, (name, holds) in rules.items():
        known = [(when, verdict[key]) for when, verdict in verdicts if verdict.get(key)]
        if known:
            when, found = known[0]
            parts.append((name, holds(found), when))
    return parts


def _tensor(spec: TensorSpec) -> dict[str, str]:
    shape = " × ".join("n" if size == -1 else str(size) for size in spec.shape) or "scalar"
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape}


def example_row(manifest: Manifest) -> Any:
    """An instance for `:predict`, made from the manifest."""
    values = {spec.name: example_value(spec, batched=manifest.batched) for spec in manifest.inputs}
    return values if len(values) > 1 else next(iter(values.values()), None)


def example_value(spec: TensorSpec, *, batched: bool) -> Any:
    """A row of one input; an ellipsis if the row is too long to read."""
    value: Any = {"b": False, "O": "text"}.get(DTYPES[spec.datatype].kind, 0)
    for size in reversed(spec.shape[1:] if batched else spec.shape):
        if max(size, 1) * (len(json.dumps(value)) + 2) > LONGEST_EXAMPLE:  # a manifest may name any size
            return "…"
        value = [value] * max(size, 1)
    return value


def curl(url: str, body: Any) -> str:
    """A command for a shell that sends a JSON body. Names from a file are quoted."""
    return f"curl {url} \\\n  -d {shlex.quote(json.dumps(body))}"
