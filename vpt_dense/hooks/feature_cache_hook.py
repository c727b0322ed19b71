"""Features of the frozen part of the backbone are computed once for each image."""

from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense import params, seeding
from vpt_dense.argument_checks import check_count
from vpt_dense.backbones.feature_cache import FeatureCache
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.errors import UserError
from vpt_dense.registry import HOOKS

#: How often the first image is made to see whether it is the same each time.
_LOOKS = 16


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Keeps the features of the frozen part of the backbone on disk, in training and validation.

    What ``feature_cache = dict(...)`` of a config becomes. See :class:`.FeatureCache` for what is
    kept and what its key is. Random augmentation makes other pixels each time, for which nothing
    is found; so it is refused, unless ``draws`` bounds it.

    Args:
        folder: Of the files; several runs may share it.
        draws: Each image is augmented in so many ways, drawn once, which passes over the data take
            in turn. None: the pipeline of the training data must not be random.

    Raises:
        UserError: At the beginning of the training, if the config rules a cache out; the message
            says how.
    """

    priority = 'LOW'  # after weights have come

    def __init__(self, folder: str = 'work_dirs/features', draws: int | None = None) -> None:
        if not isinstance(folder, str) or not folder:
            raise UserError(f'feature_cache.folder must be a path, found {folder!r}')
        self.folder = Path(folder).expanduser()
        self.draws = None if draws is None else check_count(draws, 'feature_cache.draws')
        self._attached: Any = None

    def before_train(self, runner: Runner) -> None:
        """Look at data and backbone, and begin."""
        model = params.unwrap(runner.model)
        backbone = getattr(model, 'backbone', None)
        if not isinstance(backbone, TunedBackbone):
            raise UserError(
                'feature_cache needs a backbone of vpt_dense, the model has '
                f'{type(backbone).__name__}')
        if runner.cfg.get('compile'):
            raise UserError(
                'feature_cache and compile exclude each other: files are read between the blocks; '
                'leave one of them out')
        if getattr(getattr(model, 'data_preprocessor', None), 'batch_augments', None) is not None:
            raise UserError(
                'feature_cache: data_preprocessor.batch_augments mixes other images each time; '
                'leave one of them out')
        data = runner.train_dataloader.dataset
        if not isinstance(data, seeding.SeededDataset):
            raise UserError(
                f'feature_cache needs a training data set of a config, not a {type(data).__name__}')
        if self.draws is None:
            _refuse_randomness(data)
        else:
            data.repeat(self.draws)
        model.train()  # in which dropout acts
        cache = FeatureCache(backbone, self.folder, runner.logger.warning)
        self._attached = cache.attached()
        self._cache = self._attached.__enter__()

    def after_train_epoch(self, runner: Runner) -> None:
        """Say how much was found."""
        found, computed = self._cache.found, self._cache.computed
        runner.logger.info('Features of %s images found, of %s computed', f'{found:,}',
                           f'{computed:,}')  # fmt: skip

    def after_run(self, runner: Runner) -> None:
        """Give the backbone back."""
        if self._attached is not None:
            self._attached.__exit__(None, None, None)
            self._attached = None


def _refuse_randomness(data: seeding.SeededDataset) -> None:
    """Refuse a training pipeline that makes the first image differently each time."""
    made = []
    for draw in range(_LOOKS):
        with seeding.seeded('feature_cache', draw):
            inputs = data.dataset[0]['inputs']
        made.append(inputs)
        if inputs.shape != made[0].shape or not torch.equal(inputs, made[0]):
            raise UserError(
                'feature_cache: the training pipeline changes images at random, so that each pass '
                'over the data has others; take its random transforms out, or say '
                'feature_cache.draws=4 to draw four variants of each image once')
