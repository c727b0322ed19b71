"""mmengine's runner, safe with files and at home on machines without a GPU."""

from collections.abc import Callable

import torch
from mmengine.dataset import Compose
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import DATASETS
from mmengine.runner import Runner as _Runner
from torch import nn
from torch.utils.data import DataLoader

from vpt_dense import logging
from vpt_dense.engine import checkpoints, distributed
from vpt_dense.errors import UserError


class NamingPipeline(Compose):
    """A data pipeline whose errors name the file: the stack's often do not."""

    def __call__(self, data: dict) -> dict | None:
        """Transform one sample.

        Raises:
            UserError: In place of whatever a transform raises.
        """
        try:
            return super().__call__(data)
        except UserError:
            raise
        except Exception as error:
            files = [data[key] for key in ('img_path', 'seg_map_path') if data.get(key)]
            if not files:
                raise
            reason = ' '.join(str(error).split()) or type(error).__name__
            reason = reason if len(reason) < 200 else f'{reason[:200]}...'
            raise UserError(f'cannot read or transform {" with ".join(files)}: {reason}') from error


class Runner(_Runner):
    """mmengine's ``Runner`` with six differences; it takes the same configs.

    - Without CUDA, several processes work (gloo, no device ids).
    - The console shows warnings only, until :func:`vpt_dense.logging.loud`.
    - Checkpoints are read without executing code (:mod:`vpt_dense.engine.checkpoints`).
    - A checkpoint that does not fit the model exactly is an error, not a warning.
    - Resuming without a checkpoint is an error, not a fresh start.
    - Errors in data pipelines name the file.
    """

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the processes; with gloo when there is no CUDA."""
        if self.distributed and not torch.cuda.is_available():
            distributed.set_up_cpu(self.launcher)
        super().setup_env(env_cfg)

    def build_logger(self, *args, **kwargs):
        """Build the logger; its console stays quiet while the rest is built."""
        logger = super().build_logger(*args, **kwargs)
        logging.quiet(logger)
        return logger

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes; without device ids when there is no CUDA."""
        plain = model_wrapper_cfg is None and not is_model_wrapper(model)
        if plain and self.distributed and not torch.cuda.is_available():
            return MMDistributedDataParallel(
                module=model,
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
        return super().wrap_model(model_wrapper_cfg, model)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a dataloader whose data set names the file in its errors."""
        if isinstance(dataloader, dict) and isinstance(dataloader.get('dataset'), dict):
            dataset = DATASETS.build(dataloader['dataset'])
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
            _name_files(dataset)
            dataloader = {**dataloader, 'dataset': dataset}
        return _Runner.build_dataloader(dataloader, *args, **kwargs)

    def load_or_resume(self) -> None:
        """Load or resume as configured; afterwards the console shows progress."""
        if self._resume and self._load_from is None and not self._has_loaded:
            self._load_from = checkpoints.find_last(self.work_dir)
        super().load_or_resume()
        logging.loud(self.logger)

    def load_checkpoint(
        self, filename: str, map_location: str | Callable = 'cpu', **kwargs
    ) -> dict:
        """Load a checkpoint into the model; it must fit exactly.

        Raises:
            UserError: If it does not, or if the file is damaged.
        """
        checkpoint = checkpoints.read(filename, map_location)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        if isinstance(model, BaseTTAModel):
            model = model.module
        checkpoints.load_strict(model, checkpoint, filename)
        self._has_loaded = True
        self.logger.info(f'loaded {filename}')
        return checkpoint


def _name_files(dataset: object) -> None:
    """Replace the pipelines of a data set, inside wrappers too, by naming ones."""
    for inner in [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', [])]:
        if inner is not None:
            _name_files(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if type(pipeline) is Compose:
        dataset.pipeline = NamingPipeline(pipeline.transforms)
