"""A published model without a server: `fold.load`. PyTorch is imported by `verify` alone."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fold.arrays import Arrays, Run, cut_rows, join_rows, row_count
from fold.artifact import Manifest, Preprocessing, TensorSpec
from fold.errors import BnfoldError, first_line
from fold.inputs import as_datatype, by_name, check_inputs, drawn_inputs, read_image
from fold.prediction.classes import Classes, best_classes
from fold.remote import Place, open_version
from fold.runtime import runtime_reason
from fold.serving import ModelSession, SessionOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from fold.proof import Verdict
    from fold.runtime import Provider

    Picture = str | os.PathLike[str] | bytes | Image


class LoadedModel:
    """One version of a model in memory. `load` makes it; several threads may use it at a time.

    `inputs` and `outputs` are tensors with a name, a datatype of the Open Inference Protocol and a shape, in which -1
    is a free size and the batch is first. `labels` are the names of the classes, None where the model has none.
    `device` is `cpu`, or `cuda:0` and so on.
    """

    def __init__(self, session: ModelSession, options: SessionOptions) -> None:
        self.session = session
        self.manifest: Manifest = session.version.manifest
        self.threads = options.threads
        """Inside one operator, as they were asked for."""
        self.rows_at_a_time = options.max_batch_size
        """The most rows of one run."""
        self.runs_at_a_time = session.single_core_runs or session.batches_in_flight
        self._pool = ThreadPoolExecutor(self.runs_at_a_time, f"bnfold {self}")

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.outputs

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.manifest.labels

    @property
    def device(self) -> str:
        return self.session.device

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def run(self, arrays: "Mapping[str, Any] | Sequence[Any] | np.ndarray") -> Arrays:
        """The outputs by name, for inputs of any number of rows, which are cut into batches.

        `arrays` are by input name, in the order of `inputs`, or one for a model with one input; each has the datatype
        and shape of its input, as in a request of the protocol. The outputs have a row for each row of the inputs.
        Raises `BnfoldError` for a name, type or shape that does not fit, and if the run fails.
        """
        given = check_inputs(self.inputs, by_name(self.inputs, arrays))
        if not self.manifest.batched or row_count(given) <= self.rows_at_a_time:
            return self._attempt(self.session.run, given)
        run = self.session.run_on_one_core if self.session.single_core_runs else self.session.run
        parts = cut_rows(given, row_count(given), self.rows_at_a_time)
        return join_rows(list(self._pool.map(partial(self._attempt, run), parts)))

    def predict(self, data: "np.ndarray | Mapping[str, Any] | Picture | Sequence[Any]", *, top_k: int = 1) -> Classes:
        """The best `top_k` classes of each row, for a model whose one output has a row of scores for each row.

        `data` are rows: an array or nested lists for a model with one input, else arrays by input name. Floats may be
        rounded to the type of the input; other types must fit. Or `data` is an image or a list of images, for a model
        that declares preprocessing: a path, encoded bytes, or an image of Pillow. Raises `BnfoldError` for data that
        does not fit, for a file that is no image, and for a model that is no classifier.
        """
        output = class_output(self.manifest)
        pictures = _pictures(data)
        if pictures:
            given = self._tensors(pictures)
        else:
            arrays = dict(data) if isinstance(data, Mapping) else {self._only_input(): data}
            given = {name: self._converted(name, array) for name, array in arrays.items()}
        scores = self.run(given)[output]
        if not np.isfinite(scores).all():
            raise BnfoldError(f"{self}: its scores are not finite, so no class follows from them")
        return best_classes(scores, self.labels, top_k)

    def verify(self, inputs: "Mapping[str, Any] | None" = None, *, samples: int = 16, seed: int = 0) -> "Verdict":
        """Whether this session computes what the reference of the model computes: parts C and D of the certificate.

        On `inputs`, arrays as for `run`, or on `samples` rows drawn from `seed`. The verdict is true or false, and says
        how far both are apart. `bnfold verify` proves all parts. Raises `BnfoldError` for inputs that do not fit,
        `ModuleNotFoundError` if the reference is a program of PyTorch and that is not installed.
        """
        from fold.proof import compare, load_reference  # noqa: PLC0415  # the reference may need PyTorch

        given = None if inputs is None else check_inputs(self.inputs, by_name(self.inputs, inputs))
        return compare(
            load_reference(self.session.version, provider=self.device),
            self.session.run_in_all,
            drawn_inputs(self.manifest, samples, seed) if given is None else given,
            seed=seed if given is None else None,
            provider=self.session.provider,
            precision=self.manifest.precision_on(self.session.provider),
            rows=self.rows_at_a_time if self.manifest.batched else 0,
        )

    def _attempt(self, run: Run, inputs: Arrays) -> Arrays:
        try:
            return run(inputs)
        except BnfoldError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise BnfoldError(f"{self}: the run failed: {runtime_reason(error)}") from error

    def _only_input(self) -> str:
        if len(self.inputs) != 1:
            names = ", ".join(spec.name for spec in self.inputs)
            raise BnfoldError(f"{self}: takes {names}; give arrays by these names")
        return self.inputs[0].name

    def _converted(self, name: str, rows: Any) -> np.ndarray:
        spec = next((spec for spec in self.inputs if spec.name == name), None)
        try:
            array = np.asarray(rows)
        except ValueError as error:
            raise BnfoldError(f"input {name!r}: its rows differ in shape ({first_line(error)})") from error
        return array if spec is None else as_datatype(name, array, spec.datatype)

    def _tensors(self, pictures: "Sequence[Picture]") -> Arrays:
        how, datatype = image_input(self.manifest, str(self))
        rows = [
            read_image(
                Path(picture) if isinstance(picture, str | os.PathLike) else picture,
                how,
                datatype,
                str(picture) if isinstance(picture, str | os.PathLike) else f"image {position}",
            )
            for position, picture in enumerate(pictures)
        ]
        return {how.input: np.concatenate(rows)}


def load(path: Place, *, device: "Provider" = "auto", threads: int = 0) -> LoadedModel:
    """Load `REPOSITORY/NAME`, its newest version, or `REPOSITORY/NAME/VERSION`: a path, or an s3://, gs:// or https://
    URL, which needs an extra and is downloaded once.

    Digests, certificate and canary are checked and the session is opened as `bnfold serve` does it. `device` is `cpu`,
    `cuda`, `cuda:1` for the second GPU, or `auto`, which takes a GPU if there is one; `threads` counts the threads
    inside one operator, 0 chooses. Raises `BnfoldError` for a folder that is no published model, for changed files, and
    for a model that does not compute here what was proven.
    """
    options = SessionOptions(device=device, threads=threads)
    return LoadedModel(ModelSession.open(open_version(path), options), options)


def class_output(manifest: Manifest) -> str:
    """The output with the scores of classes: the only one, numbers of shape [rows, classes]. Raises `BnfoldError`."""
    if len(manifest.outputs) == 1 and manifest.batched:
        [output] = manifest.outputs
        if len(output.shape) == 2 and output.datatype not in ("BOOL", "BYTES"):
            return output.name
    outputs = ", ".join(f"{output.name} {list(output.shape)}" for output in manifest.outputs)
    raise BnfoldError(f"{manifest.name}/{manifest.version}: is no classifier: its outputs are {outputs}")


def image_input(manifest: Manifest, where: str) -> tuple[Preprocessing, str]:
    """How an image becomes an input, and the datatype of that input. Raises `BnfoldError` that begins with `where`."""
    how = manifest.preprocessing
    spec = next((spec for spec in manifest.inputs if how is not None and spec.name == how.input), None)
    if how is None or spec is None:
        raise BnfoldError(f"{where}: the model declares no preprocessing, so it takes no images; give arrays")
    return how, spec.datatype


def _pictures(data: Any) -> "list[Picture]":
    """The images that `data` is; none if it is rows."""
    from PIL.Image import Image  # noqa: PLC0415  # loading a model needs no Pillow

    kinds = (str, os.PathLike, bytes, Image)
    if isinstance(data, kinds):
        return [data]
    listed = data if isinstance(data, list | tuple) else ()
    return list(listed) if listed and all(isinstance(one, kinds) for one in listed) else []
