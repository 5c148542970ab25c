"""The page at `/docs`: every path of the OpenAPI document, each with a command to try.

Rendered here because FastAPI's own page loads its scripts from the internet, which a service may not reach.
"""

from typing import Any

from service.http.page.index import curl, example_row, example_value, template
from service.operations import EXTENSIONS, package_version
from service.protocol import NOT_IN_JSON
from service.repository import Model, Repository

GROUPS = {
    "v2": "Open Inference Protocol, /v2",
    "v1": "The v1 convention, /v1",
    "equivalence": "Equivalence",
    "operation": "Operation",
}


def render_docs(document: dict[str, Any], repository: Repository, base_url: str) -> str:
    """The page as HTML. `document` is the application's OpenAPI document."""
    models = repository.ready()
    model = next((model for model in models if _infer_body(model)), next(iter(models), None))
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in GROUPS}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            entry = _operation(method.upper(), path, operation, model, base_url.rstrip("/"))
            groups.setdefault(operation["tags"][0], []).append(entry)
    return template("docs.html").render(
        version=package_version(),
        extensions=EXTENSIONS,
        groups=[{"name": GROUPS.get(name, name), "operations": operations} for name, operations in groups.items()],
    )


def _operation(method: str, path: str, operation: dict[str, Any], model: Model | None, base_url: str) -> dict[str, Any]:
    name, version = (model.name, model.version) if model else ("NAME", "1")
    url = base_url + path.replace("{name}", name).replace("{version}", version)
    example = _example(path, model) if method == "POST" else None
    command = f"curl {url}" if method == "GET" else f"curl -X {method} {url}"
    if example is not None:
        command = curl(url, example)
    return {
        "method": method,
        "path": path,
        "description": operation.get("description") or operation.get("summary", ""),
        "bodies": list(operation.get("requestBody", {}).get("content", ())),
        "curl": command,
    }


def _example(path: str, model: Model | None) -> Any:
    """A body that the path takes; None where none is needed, or where no example can be given."""
    match path.rpartition("/")[2]:
        case "infer" if model is not None:
            return _infer_body(model)
        case "{name}:predict" | "{version}:predict" if model is not None:
            return {"instances": [example_row(model.manifest)]}
        case "equivalence":
            return {"samples": 16, "seed": 0}
        case "index":
            return {"ready": True}
    return None


def _infer_body(model: Model) -> Any:
    inputs = []
    for spec in model.manifest.inputs:
        if spec.datatype in NOT_IN_JSON:
            return None
        batch = model.signature.batched
        shape = [1] * batch + [1 if size == -1 else size for size in spec.shape[batch:]]
        row = example_value(spec, batched=batch)
        inputs.append({"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": [row] if batch else row})
    return {"inputs": inputs}
