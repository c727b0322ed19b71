"""Visual prompt tuning of vision transformers for dense prediction and classification.

Importing the package is quick: it pulls in no framework. Every class is reached from a config by
its scoped name (``type='vpt_dense.VisionTransformer'``); :mod:`vpt_dense.registry` finds
the module that holds it. :func:`load` gives a model to predict with.
"""

from typing import TYPE_CHECKING, Any

from vpt_dense import imports  # noqa: F401 - before anything imports the stack
from vpt_dense.version import __version__

if TYPE_CHECKING:
    from vpt_dense.predicting.model import ModelPredictor

__all__ = ['__version__', 'load']


def load(
    checkpoint: Any, config: Any = None, device: str = 'cpu', *, base: Any = None,
    cfg_options: Any = None, tta: bool = False, method: str | None = None,
) -> 'ModelPredictor':
    """Load a model to predict with.

    ``vpt_dense.load('tuned.safetensors').predict('photo.jpg').labels``

    Args:
        checkpoint: Path of a checkpoint or a delta; or a run's folder, whose last one is taken.
        config: Path of its config, or a ``mmengine.Config``; None: the one that it holds.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        base: Path of the pretrained weights that a delta builds on; None: where the config or the
            delta says they are.
        cfg_options: Settings that go over the config's: dotted key -> value.
        tta: Test-time augmentation, by the config's ``tta_model`` and ``tta_pipeline``.
        method: What trained, if the config is a recipe: ``deep``, ``lora``, ...

    Returns:
        A predictor; see :meth:`vpt_dense.predicting.model.ModelPredictor.predict`.

    Raises:
        UserError: If a file is absent, damaged or of another model.
    """
    from vpt_dense import logging

    logging.filter_warnings()  # before the stack is imported
    from vpt_dense.predicting import model

    return model.load(
        checkpoint, config, device, base=base, cfg_options=cfg_options, tta=tta, method=method)
