"""Architectures of transformers and timm, from the `config.json` beside the weights.

A configuration is data: it chooses among the classes of the package that the user named, and code of its own
(`auto_map`, `trust_remote_code`) is refused. Nothing is fetched for it.
"""

import difflib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fold.errors import BnfoldError, short
from fold.sources.architecture.factory import Factory, defining_file
from fold.sources.checkpoint.index import read_json

LIBRARIES = {
    "transformers": "class, such as --arch transformers:ResNetForImageClassification",
    "timm": "model, such as --arch timm:create_model --arch-arg model_name=resnet50",
}
"""Values of `--arch` that stand for the `config.json`, and what to name where there is none."""
REMOTE = ("auto_map", "custom_pipelines", "trust_remote_code")
"""Keys that make transformers run code that lies beside the weights, or on a hub."""
FETCHES = re.compile(r".*(attn|experts)_implementation.*|.*kernel_config|use_kernels")
"""Keys that may name a kernel on a hub, which is code. The architecture computes the same without."""
OURS_IN_TIMM = ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments of `timm.create_model` that read files or fetch weights."""
PRETRAINED = ("input_size", "fixed_input_size", "pool_size", "num_classes", "mean", "std", "interpolation", "crop_pct")


def described_by(config: Path | None) -> str | None:
    """The library of which a configuration names a model; None if it names none, or cannot be read."""
    try:
        content = {} if config is None else read_json(config)
    except BnfoldError:
        return None
    return "transformers" if content.get("architectures") else "timm" if content.get("architecture") else None


def from_configuration(library: str, config: Path | None, arguments: Mapping[str, Any]) -> Factory:
    """The factory that `config` describes, with `arguments` bound to it, for `--arch transformers` and `--arch timm`.

    Raises `BnfoldError` without a configuration, and for one that names no class of the library.
    """
    if config is None:
        raise BnfoldError(
            f"--arch {library}: needs the config.json beside the weights; give their directory, or name the "
            f"{LIBRARIES[library]}"
        )
    content = read_json(config)
    _refuse_code(content, str(config))
    module = _import(library)
    if library == "timm":
        return _timm(module, content, config, arguments)
    names = content.get("architectures")
    if not isinstance(names, list) or not names:
        other = "; it is timm's, --arch timm" if "architecture" in content else ""
        raise BnfoldError(f"{config}: names no class under 'architectures'{other}")
    kind: Any = getattr(module, str(names[0]), None)
    if not _is_model(kind, module):
        raise BnfoldError(f"{config}: names {short(str(names[0]))!r}, which is no model of the installed transformers")
    configuration = kind.config_class.from_dict({**_without_fetches(content), **arguments})
    return Factory(lambda: kind(configuration), defining_file(kind, module))


def with_configuration(
    factory: Factory, config: Path | None, arguments: Mapping[str, Any], arch: str
) -> dict[str, Any]:
    """The arguments with a configuration object, if the callable is one of transformers that takes one first.

    It is made of the object that the user gave as `config`, else of the file beside the weights.
    """
    owner = getattr(factory.make, "__self__", factory.make)
    if "trust_remote_code" in arguments:
        raise BnfoldError(f"--arch {arch}: trust_remote_code runs code from elsewhere; name a class of your own")
    if not str(getattr(owner, "__module__", "")).startswith("transformers.") or not _takes_config(factory.make):
        return dict(arguments)
    content = arguments.get("config")
    if content is None:
        if config is None:
            raise BnfoldError(
                f"--arch {arch}: takes a configuration; give the directory with the config.json, or --arch-arg "
                "config='{\"model_type\": …}'"
            )
        content = read_json(config)
    if not isinstance(content, Mapping):
        return dict(arguments)  # a configuration object of the user's own
    where = f"--arch {arch}" if config is None else str(config)
    _refuse_code(content, where)
    kinds = _import("transformers").CONFIG_MAPPING
    name = content.get("model_type")
    if not isinstance(name, str) or name not in kinds:
        raise BnfoldError(f"{where}: its model_type {short(str(name))!r} is none of the installed transformers")
    return {**arguments, "config": kinds[name].from_dict(_without_fetches(content))}


def _takes_config(make: Callable[..., nn.Module]) -> bool:
    if getattr(make, "__name__", "") == "from_config":  # of Auto classes, whose signature is not told
        return True
    try:
        return next(iter(inspect.signature(make).parameters), None) == "config"
    except (TypeError, ValueError):
        return False


def _import(library: str) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise BnfoldError(f"--arch {library}: needs the package {error.name!r}; install it") from error


def _is_model(kind: Any, transformers: Any) -> bool:
    if not inspect.isclass(kind) or not issubclass(kind, transformers.PreTrainedModel):
        return False
    return kind.__module__.startswith("transformers.") and getattr(kind, "config_class", None) is not None


def _timm(timm: Any, content: Mapping[str, Any], config: Path, arguments: Mapping[str, Any]) -> Factory:
    name = content.get("architecture")
    if not isinstance(name, str):
        other = "; it is transformers', --arch transformers" if "architectures" in content else ""
        raise BnfoldError(f"{config}: names no model under 'architecture'{other}")
    if not timm.is_model(name):  # create_model itself also takes addresses of hubs and of directories
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        asked = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BnfoldError(f"{config}: names {short(name)!r}, which is no model of the installed timm{asked}")
    own = content.get("model_args") or {}
    told = content.get("pretrained_cfg") or {}
    refused = [key for key in own if key in OURS_IN_TIMM] if isinstance(own, Mapping) else ["model_args"]
    if refused or not isinstance(told, Mapping):
        raise BnfoldError(f"{config}: {short(str((refused or ['pretrained_cfg'])[0]))} is no argument of a network")
    usual = {key: content[key] for key in ("num_classes", "global_pool") if content.get(key) is not None}
    given = {**usual, **own, **arguments}
    pretrained = {key: value for key, value in told.items() if key in PRETRAINED}
    entry = timm.models.model_entrypoint(name)
    return Factory(
        lambda: timm.create_model(name, pretrained=False, pretrained_cfg=pretrained or None, **given),
        defining_file(entry, timm),
    )


def _refuse_code(content: Any, where: str) -> None:
    for key, value in _entries(content):
        if key in REMOTE and value:
            raise BnfoldError(
                f"{where}: names code of its own ({key}), which is not run; give --arch FILE.py:CALLABLE with code "
                "that you trust"
            )


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _without_fetches(content: Any) -> Any:
    """A configuration without what a hub would be asked for."""
    if isinstance(content, Mapping):
        kept = {key: _without_fetches(value) for key, value in content.items() if not FETCHES.fullmatch(key)}
        return {**kept, "use_pretrained_backbone": False} if "use_pretrained_backbone" in kept else kept
    return [_without_fetches(value) for value in content] if isinstance(content, list) else content
