"""What a deployment may choose, from `BNFOLD_…` in the environment or from the command line; the latter wins.

Every default serves: nothing but the repository has to be said.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from fold.errors import BnfoldError
from fold.runtime import Provider


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BNFOLD_", env_ignore_empty=True, frozen=True)

    repository: Path
    """Folder of NAME/VERSION model directories."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one, which the start line tells."""
    provider: Provider = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads inside one operator; 0 leaves it to ONNX Runtime."""
    spinning: bool = False
    """Let those threads spin between runs: about half the latency for whole cores."""
    max_batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows in one run, and so in one request."""
    queue_rows: Annotated[int, Field(ge=0)] = 1024
    """Rows that may wait for one model; what comes on top is answered with 429."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a request may wait in the queue, and how long stopping may take after the grace time."""
    grace_seconds: Annotated[float, Field(ge=0)] = 1.0
    """How long to go on serving after SIGTERM, not ready any more, for load balancers to notice."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """Of a body, as it arrives and as it unpacks."""
    max_json_depth: Annotated[int, Field(ge=4)] = 32
    max_samples: Annotated[int, Field(ge=1)] = 256
    """Rows of one equivalence check."""
    equivalence_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long an equivalence check may take, its wait included; one that takes longer is answered with 504."""
    shadow: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the answered requests that are held against the reference in the background."""
    max_image_pixels: Annotated[int, Field(ge=1)] = 1 << 25


def load_settings(**choices: Any) -> Settings:
    """Settings of the environment under `choices`, of which None is no choice. Raises `BnfoldError` in one line."""
    try:
        return Settings(**{name: value for name, value in choices.items() if value is not None})
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = str(problem["loc"][0])
            came = "" if problem["type"] == "missing" else f", {problem['input']!r} came"
            problems.append(f"{name} (or BNFOLD_{name.upper()}): {problem['msg']}{came}")
        raise BnfoldError("settings: " + "; ".join(problems)) from None
