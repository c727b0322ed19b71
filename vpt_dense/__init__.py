"""Visual prompt tuning of vision transformers for dense prediction and classification.

Importing the package is quick: it pulls in no framework. Every class is reached from a config by
its scoped name (``type='vpt_dense.VisionTransformer'``); :mod:`vpt_dense.registry` finds
the module that holds it. For plain PyTorch there are functions: :func:`create_backbone`,
:func:`tune`, :func:`.save_delta`, ... :func:`load` gives a model to predict with.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from vpt_dense import imports  # noqa: F401 - before anything imports the stack
from vpt_dense.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from vpt_dense.predicting.model import ModelPredictor

#: The functions for plain PyTorch, which are imported when they are asked for.
_PLAIN = {
    'models': (
        'count', 'create_backbone', 'list_backbones', 'list_methods', 'parameter_groups', 'tune',
        'untune'),
    'files': ('load_delta', 'save_delta'),
    'peft': ('load_peft', 'save_peft'),
    'tasks': ('create_classifier', 'create_segmentor'),
}
_PLACES = {
    **{name: f'plain.{module}' for module, names in _PLAIN.items() for name in names},
    'MultiTask': 'multitask.model',
}

__all__ = ['__version__', 'load', *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'vpt_dense.{_PLACES[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    checkpoint: Any, config: Any = None, device: str = 'cpu', *, base: Any = None,
    cfg_options: Any = None, tta: bool = False, method: str | None = None,
    classes: 'Sequence[str] | None' = None,
) -> 'ModelPredictor | nn.Module':
    """Load a model to predict with.

    ``vpt_dense.load('tuned.safetensors').predict('photo.jpg').labels``

    A file of :func:`.save_delta` gives the model itself, in eval mode: a backbone, or a classifier
    or segmentor with a method ``predict``. Of the further arguments it takes ``device`` and
    ``base``.

    Args:
        checkpoint: Path of a checkpoint or a delta; or a run's folder, whose last one is taken.
        config: Path of its config, or a ``mmengine.Config``; None: the one that it holds.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        base: Path of the pretrained weights that a delta builds on; None: where the config or the
            delta says they are.
        cfg_options: Settings that go over the config's: dotted key -> value.
        tta: Test-time augmentation, by the config's ``tta_model`` and ``tta_pipeline``.
        method: What trained, if the config is a recipe: ``deep``, ``lora``, ...
        classes: Names of other classes than those of training, for a model that knows them by
            their names (docs/clip.md).

    Returns:
        A predictor; see :meth:`vpt_dense.predicting.model.ModelPredictor.predict`. Or the model.

    Raises:
        UserError: If a file is absent, damaged or of another model.
    """
    from vpt_dense import logging, safe_files
    from vpt_dense.errors import UserError

    if safe_files.is_plain_delta(checkpoint):
        from vpt_dense.plain import files

        files.check_arguments(
            config=config, cfg_options=cfg_options, tta=tta, method=method, classes=classes)
        return files.load(checkpoint, base, device)
    if importlib.util.find_spec('mmengine') is None:
        file = safe_files.check(checkpoint)
        raise UserError(
            f'{file} is no file of vpt_dense.save_delta; those of configs need mmengine and what '
            'else requirements/runtime.txt and mminstall.txt name: install these')
    logging.filter_warnings()  # before the stack is imported
    from vpt_dense.predicting import model

    return model.load(
        checkpoint, config, device, base=base, cfg_options=cfg_options, tta=tta, method=method,
        classes=classes)
