"""mmengine's training loops, which a resumed run continues exactly where it was saved."""

from itertools import islice
from typing import Any

from mmengine.dist import get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop as _EpochBasedTrainLoop
from mmengine.runner import IterBasedTrainLoop as _IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader

from vpt_dense import seeding
from vpt_dense.errors import UserError


def check_loader(loader: DataLoader, by_epoch: bool) -> None:
    """A training needs batches, and epochs an end.

    Args:
        loader: Of the training.
        by_epoch: Whether the loop counts epochs.

    Raises:
        UserError: If there is no batch, or no end.
    """
    sampler = getattr(loader.batch_sampler, 'sampler', None)
    if getattr(sampler, 'is_infinite', hasattr(sampler, 'skip')):
        if by_epoch:
            kind = type(getattr(sampler, 'sampler', sampler)).__name__
            raise UserError(
                f'train_dataloader.sampler: an epoch of the {kind} never ends, but train_cfg '
                'counts epochs (EpochBasedTrainLoop); use DefaultSampler, or IterBasedTrainLoop'
            )
    elif len(loader) == 0:
        images = len(loader.dataset) if sampler is None else len(sampler)
        raise UserError(
            f'train_dataloader.batch_size is {loader.batch_size}, but a process has {images} '
            f'images ({len(loader.dataset)} in all, {get_world_size()} processes) and '
            'drop_last=True leaves out batches that are not full: nothing would train; lower it, '
            'or set train_dataloader.drop_last=False'
        )


class EpochBasedTrainLoop(_EpochBasedTrainLoop):
    """mmengine's loop; a checkpoint of the middle of an epoch goes on in the middle of it.

    mmengine would begin that epoch again, so that a resumed run sees some images more often.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_loader(self.dataloader, by_epoch=True)

    def run_epoch(self) -> None:
        """Train for an epoch, or for what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = self._iter - self._epoch * len(self.dataloader)
        if not 0 <= first <= len(self.dataloader):
            self.runner.logger.warning(
                'resumed at iteration %d of epoch %d, but an epoch has %d iterations now: the '
                'epoch begins again',
                self._iter, self._epoch + 1, len(self.dataloader),
            )  # fmt: skip
            first = 0
        drop = seeding.start_at(self.dataloader, first) if first else 0
        for idx, data_batch in enumerate(islice(self.dataloader, drop, None), first):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class _Batches(_InfiniteDataloaderIterator):
    """mmengine's endless batches; with any sampler what was seen is left out without loading it.

    A new pass over the data begins at once: mmengine's waits two seconds, which is most of the time
    of a training on few images.
    """

    def skip_iter(self, num_iters: int) -> None:
        """Leave out the batches of the first ``num_iters`` iterations."""
        sampler = getattr(self._dataloader.batch_sampler, 'sampler', None)
        epoch, batches = 0, num_iters
        if isinstance(sampler, seeding.PositionSampler) and not sampler.is_infinite:
            epoch, batches = divmod(num_iters, len(self._dataloader))
        if seeding.start_at(self._dataloader, batches):
            super().skip_iter(num_iters)
            return
        self._epoch = epoch
        sampler.set_epoch(epoch)

    def _reset_iterator(self) -> None:
        """Begin the next pass over the data, with the order of its own."""
        self._epoch += 1
        loader = self._dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self._epoch)
                break
        self._iterator = iter(loader)


class IterBasedTrainLoop(_IterBasedTrainLoop):
    """mmengine's loop; resuming loads nothing that was seen, whatever the sampler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_loader(self.dataloader, by_epoch=False)
        self.dataloader_iterator = _Batches(self.dataloader)


_EXACT = {
    _EpochBasedTrainLoop: EpochBasedTrainLoop,
    _IterBasedTrainLoop: IterBasedTrainLoop,
}


def exact(loop: dict) -> dict:
    """Return the config of a training loop with mmengine's two loops replaced by ours."""
    loop = dict(loop)
    if 'type' in loop:
        kind = LOOPS.get(loop['type']) if isinstance(loop['type'], str) else loop['type']
        if 'by_epoch' in loop:
            return loop  # mmengine has the error for that
    elif 'by_epoch' in loop:
        kind = _EpochBasedTrainLoop if loop.pop('by_epoch') else _IterBasedTrainLoop
    else:
        return loop
    # An unknown name stays, for the registry's own error.
    return {**loop, 'type': _EXACT.get(kind, kind or loop.get('type'))}
