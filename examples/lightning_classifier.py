"""A classifier with Lightning on folders train/CLASS and val/CLASS.

Usage::

    python examples/lightning_classifier.py --data data/flowers --devices 8
    python examples/lightning_classifier.py --tiny     # a random model on generated images
"""

import argparse
import tempfile

import lightning
import tiny
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import vpt_dense


class Tuning(lightning.LightningModule):
    """Training and validation of a classifier of which little trains."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.strict_loading = False  # what is frozen is in no checkpoint

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Counts what is right."""
        images, labels = batch
        right = (self.model(images).argmax(1) == labels).float().mean()
        self.log('accuracy', right, prog_bar=True, sync_dist=True, batch_size=len(labels))

    def configure_optimizers(self) -> dict:
        """AdamW on what trains, cosine to zero."""
        optimizer = torch.optim.AdamW(
            vpt_dense.parameter_groups(self.model, self.lr, weight_decay=0.01))
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return dict(optimizer=optimizer, lr_scheduler=dict(scheduler=schedule, interval='step'))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Checkpoints hold what trains, and buffers; not the frozen weights."""
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                del checkpoint['state_dict'][name]


def main() -> None:
    """Trains, validates, writes what was tuned."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', help='with train/CLASS/*.jpg and val/CLASS/*.jpg')
    parser.add_argument('--backbone', default='vit_small_patch16_dinov3.lvd1689m')
    parser.add_argument('--checkpoint', help="a file of its weights, in place of timm's")
    parser.add_argument('--method', default='lora', help='vpt_dense.list_methods() names them')
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--devices', type=int, default=1)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--out', default='tuned.safetensors')
    parser.add_argument('--tiny', action='store_true')
    args = parser.parse_args()
    lightning.seed_everything(0)
    if args.tiny:
        args.data, args.epochs, args.lr = tiny.image_folder(tempfile.mkdtemp()), 10, 1e-2
    options = tiny.MODEL if args.tiny else dict(checkpoint=args.checkpoint)
    classes = ImageFolder(f'{args.data}/train').classes
    model = vpt_dense.create_classifier(args.backbone, len(classes), args.method, **options)
    size = {'input_size': (3, *model.backbone.patch_embed.img_size)}
    told = resolve_data_config(size, model=model.backbone)
    loaders = [
        DataLoader(ImageFolder(f'{args.data}/{split}', create_transform(**told, **further)),
                   args.batch, shuffle=split == 'train', num_workers=args.workers)
        for split, further in (('train', dict(is_training=True)), ('val', {}))]  # fmt: skip
    trainer = lightning.Trainer(
        max_epochs=args.epochs, devices=args.devices, enable_checkpointing=not args.tiny,
        default_root_dir='work_dirs/lightning', logger=False,
        accelerator='cpu' if args.tiny else 'auto')
    trainer.fit(Tuning(model, args.lr), *loaders)
    print(f'accuracy {100 * trainer.callback_metrics["accuracy"].item():.1f}')
    if trainer.is_global_zero:
        size = vpt_dense.save_delta(model, args.out, classes=classes)
        print(f'{args.out}: {size:,} bytes')


if __name__ == '__main__':
    main()
