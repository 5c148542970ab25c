"""The reference's answer beside the served one: who asks for it, and its JSON."""

from typing import Any

from service.errors import BadRequestError, shown
from service.headers import JSON, Headers
from service.http.head_cache import RequestHead
from service.proof import ReferenceAnswer
from service.protocol import render_json


def asks_reference(document: dict[str, Any], head: RequestHead) -> bool:
    """By the body's member `reference`, or else by the query. Raises `BadRequestError` if the member is no Boolean."""
    asks = document.get("reference")
    if asks is not None and type(asks) is not bool:
        raise BadRequestError(f"reference is {shown(asks)}; expected true or false")
    return head.reference if asks is None else asks


def write_both(served: Any, exact: Any, answers: list[ReferenceAnswer]) -> tuple[Headers, bytes]:
    """Headers and body of an answer: the predictions that were served, and those of the reference."""
    body = render_json({"predictions": served, "reference": {"predictions": exact, "outputs": _distances(answers)}})
    return [JSON, (b"content-length", b"%d" % len(body))], body


def _distances(answers: list[ReferenceAnswer]) -> list[dict[str, Any]]:
    """For each output, its difference and margin in each row of all runs."""
    found = []
    for name in answers[0].outputs:
        margins = [answer.margins[name] for answer in answers]
        found.append(
            {
                "name": name,
                "difference": [value for answer in answers for value in answer.differences[name]],
                "margin": None if None in margins else [value for each in margins for value in each or ()],
            }
        )
    return found
