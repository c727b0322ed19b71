"""A classifier with transformers' Trainer on folders train/CLASS and val/CLASS.

Usage::

    python examples/hf_trainer.py --data data/flowers
    python examples/hf_trainer.py --tiny     # a random model on generated images
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from transformers import Trainer, TrainingArguments

import vpt_dense


class ForTrainer(nn.Module):
    """A classifier that takes and gives what the Trainer wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Scores (B, K), and the loss if there are labels."""
        logits = self.model(pixel_values)
        loss = {} if labels is None else dict(loss=F.cross_entropy(logits, labels))
        return dict(**loss, logits=logits)


class DeltaTrainer(Trainer):
    """A Trainer whose checkpoints hold what was tuned, and nothing else of the model."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes ``delta.safetensors``."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model).model
            vpt_dense.save_delta(model, folder / 'delta.safetensors')

    def _load_from_checkpoint(self, checkpoint: str, model: nn.Module | None = None) -> None:
        vpt_dense.load_delta((model or self.model).model, f'{checkpoint}/delta.safetensors')

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """AdamW on what trains."""
        self.optimizer = torch.optim.AdamW(vpt_dense.parameter_groups(
            self.model, self.args.learning_rate, self.args.weight_decay))
        return self.optimizer


def main() -> None:
    """Trains, validates after each epoch, writes what was tuned."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', help='with train/CLASS/*.jpg and val/CLASS/*.jpg')
    parser.add_argument('--backbone', default='vit_small_patch16_dinov3.lvd1689m')
    parser.add_argument('--checkpoint', help="a file of its weights, in place of timm's")
    parser.add_argument('--method', default='deep', help='vpt_dense.list_methods() names them')
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--out', default='work_dirs/hf_trainer', help='folder of checkpoints')
    parser.add_argument('--resume', help='one of its checkpoints')
    parser.add_argument('--tiny', action='store_true')
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.tiny:
        args.data, args.epochs, args.lr = tiny.image_folder(tempfile.mkdtemp()), 10, 1e-2
    classes = ImageFolder(f'{args.data}/train').classes
    options = tiny.MODEL if args.tiny else dict(checkpoint=args.checkpoint)
    model = vpt_dense.create_classifier(args.backbone, len(classes), args.method, **options)
    size = {'input_size': (3, *model.backbone.patch_embed.img_size)}
    told = resolve_data_config(size, model=model.backbone)
    train, val = (
        ImageFolder(f'{args.data}/{split}', create_transform(**told, is_training=split == 'train'))
        for split in ('train', 'val'))
    settings = TrainingArguments(
        args.out, num_train_epochs=args.epochs, per_device_train_batch_size=args.batch,
        learning_rate=args.lr, weight_decay=0.01, lr_scheduler_type='cosine', eval_strategy='epoch',
        save_strategy='epoch', report_to='none', use_cpu=args.tiny, logging_strategy='epoch')
    trainer = DeltaTrainer(
        ForTrainer(model), settings, train_dataset=train, eval_dataset=val,
        data_collator=lambda batch: dict(
            pixel_values=torch.stack([image for image, _ in batch]),
            labels=torch.tensor([label for _, label in batch])),
        compute_metrics=lambda found: dict(
            accuracy=float((found.predictions.argmax(1) == found.label_ids).mean())))
    trainer.train(resume_from_checkpoint=args.resume)
    print(f'accuracy {100 * trainer.evaluate()["eval_accuracy"]:.1f}')
    vpt_dense.save_delta(model, f'{args.out}/delta.safetensors', classes=classes)


if __name__ == '__main__':
    main()
