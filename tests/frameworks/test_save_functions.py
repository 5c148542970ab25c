"""What the frameworks' own save functions write, folded by one command into a published model."""

# ruff: noqa: I001  # the schemas come before whatever imports torchvision
from frameworks import torchvision_schemas  # noqa: F401

import json
from pathlib import Path

import accelerate
import lightning
import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.distributed.checkpoint as dcp
import transformers
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from timm.models._hub import save_for_hf
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor

from support.commands import bnfold
from support.folding import randomise
from support.loadable import plain

pytestmark = pytest.mark.filterwarnings("ignore")


def published(source: Path, module: nn.Module, *options: object, shape: tuple[int, ...] = (3, 32, 32)) -> str:
    """Fold a source; the published model computes what the module does. Returns what was printed."""
    repository = source.parent / "repository"
    sizes = ",".join(map(str, shape))
    done = bnfold("fold", source, "--out", repository, "--name", "net", "--input", sizes, "--samples", 2, *options)
    assert done.returncode == 0, done.stderr
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(repository / "net/1/model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x))
    expected = expected if isinstance(expected, torch.Tensor) else expected.logits
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    return done.stderr


@pytest.fixture
def resnet() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    return randomise(transformers.ResNetForImageClassification(config), seed=0, hostile=False)


@pytest.mark.parametrize("arch", ["transformers", "transformers:AutoModelForImageClassification.from_config"])
@pytest.mark.parametrize(("size", "told"), [("5GB", "found model.safetensors"), ("10KB", "parts")])
def test_save_pretrained(tmp_path, resnet, arch, size, told) -> None:
    resnet.save_pretrained(tmp_path / "net", max_shard_size=size)
    assert told in published(tmp_path / "net", resnet, "--arch", arch)


def test_trainer(tmp_path, resnet) -> None:
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": torch.tensor(n % 2)} for n in range(4)]
    options = transformers.TrainingArguments(
        str(tmp_path / "run"), max_steps=1, save_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True
    )
    transformers.Trainer(resnet, options, train_dataset=rows).train()
    assert "found checkpoint-1/model.safetensors" in published(tmp_path / "run", resnet, "--arch", "transformers")


def test_timm(tmp_path) -> None:
    torch.manual_seed(0)
    module = randomise(timm.create_model("resnet10t", num_classes=4), seed=0, hostile=False)
    save_for_hf(module, tmp_path / "net", safe_serialization="both")
    assert "found model.safetensors" in published(tmp_path / "net", module, "--arch", "timm")


def test_accelerate(tmp_path) -> None:
    module = randomise(plain(), seed=0, hostile=False)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, _ = accelerator.prepare(module, torch.optim.SGD(module.parameters()))
    accelerator.save_state(str(tmp_path / "state"))
    assert "found model.safetensors" in published(tmp_path / "state", module, "--arch", "support.loadable:plain")
    accelerator.save_model(prepared, str(tmp_path / "model/net"), max_shard_size="1KB")
    assert "parts" in published(tmp_path / "model/net", module, "--arch", "support.loadable:plain")


class Lit(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_with_averaged_weights(tmp_path) -> None:
    lit, averaging = Lit(), EMAWeightAveraging(decay=0.5)
    saving = ModelCheckpoint(tmp_path / "ckpt", filename="last", every_n_train_steps=3)
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", callbacks=[averaging, saving], logger=False, enable_progress_bar=False
    )
    trainer.fit(lit, torch.utils.data.DataLoader(torch.randn(12, 3, 32, 32), batch_size=4))
    content = torch.load(tmp_path / "ckpt/last.ckpt", weights_only=False)
    assert "current_model_state" in content
    averaged = plain()
    averaged.load_state_dict({name.removeprefix("net."): one for name, one in content["state_dict"].items()})
    told = published(tmp_path / "ckpt/last.ckpt", averaged, "--ema", "--arch", "support.loadable:plain")
    assert "as Lightning does" not in told


def _save(rank: int, folder: str, store: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    state = randomise(plain(), seed=0, hostile=False).state_dict()
    split = {name: distribute_tensor(one, mesh, [Shard(0)]) if one.ndim else one for name, one in state.items()}
    dcp.save({"model": split}, checkpoint_id=folder)
    torch.distributed.destroy_process_group()


def test_two_ranks_of_a_distributed_checkpoint(tmp_path) -> None:
    folder = tmp_path / "net"
    torch.multiprocessing.spawn(_save, (str(folder), str(tmp_path / "store")), nprocs=2)
    torch.manual_seed(0)
    module = randomise(plain(), seed=0, hostile=False)
    told = published(folder, module, "--arch", "support.loadable:plain")
    assert "found a distributed checkpoint of 2 files" in told
    files = json.loads((tmp_path / "repository/net/1/manifest.json").read_text())["source"]["files"]
    assert list(files) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
