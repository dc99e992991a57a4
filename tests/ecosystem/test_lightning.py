"""In a LightningModule."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pairloss

lightning = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")

CENTRES = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) * 2


class Module(lightning.LightningModule):
    """With a memory, whose buffers belong in Lightning's checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(6, 3)
        self.criterion = pairloss.CrossBatchMemory(pairloss.PairKLHingeLoss(), 32, 3)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        inputs, labels = batch
        loss = self.criterion(self.network(inputs), labels)
        self.log("loss", loss)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_two_steps_and_a_checkpoint(tmp_path: Path) -> None:
    labels = torch.arange(32) % 3
    loader = DataLoader(TensorDataset(CENTRES[labels], labels), batch_size=16)
    torch.manual_seed(0)
    module = Module()
    before = module.network.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=2,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader)
        trainer.save_checkpoint(tmp_path / "module.ckpt")
    assert len(module.losses) == 2
    assert trainer.callback_metrics["loss"] == pytest.approx(module.losses[-1])
    assert not torch.equal(module.network.weight, before)
    restored = Module.load_from_checkpoint(tmp_path / "module.ckpt", map_location="cpu")
    assert torch.equal(restored.criterion.logits, module.criterion.logits)
    assert int(restored.criterion.written) == 32
