"""What tests of image tokenizers share: bright squares, a tiny tokenizer, and a short run of it."""

import dataclasses
import json

import numpy as np
import torch

from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.records import Record
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig
from unimm.training.image_tokenizer.trainer import TokenizerTrainer, TokenizerTrainerConfig
from unimm.training.optimizers import Budget, Schedule

SIZES = ImageTokenizerConfig(16, 32, (1, 1), 1, 32, quantizer=QuantizerConfig(codebook_size=32, code_dim=4))


class Squares:
    """One bright square each, somewhere on black."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Record:
        image = np.zeros((16, 16, 3), dtype=np.uint8)
        top, left = index % 8, index // 8
        image[top : top + 8, left : left + 8] = (250, 40 * (index % 6), 120)
        return Record(key=f"squares/{index}", image=image)


def make_config(max_steps: int, **changes) -> TokenizerTrainerConfig:
    config = TokenizerTrainerConfig(
        budget=Budget(max_steps=max_steps),
        schedule=Schedule("constant"),
        lr=2e-3,
        muon_lr=0.02,
        num_workers=0,
        report_every=1,
        ema_decay=0.9,
    )
    return dataclasses.replace(config, **changes)


def make_trainer(folder, config: TokenizerTrainerConfig, batch_size: int = 4, sizes=SIZES, **words) -> TokenizerTrainer:
    torch.manual_seed(0)
    batches = ImageBatches([ImageSource(Squares())], batch_size, sizes.image_size)
    return TokenizerTrainer(ImageTokenizer(sizes), batches, config, folder, device="cpu", **words)


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
