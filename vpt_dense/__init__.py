"""Visual prompt tuning of vision transformers for dense prediction and classification.

Importing the package is quick: it pulls in no framework. Every class is reached from a config by
its scoped name (``type='vpt_dense.PromptedVisionTransformer'``); :mod:`vpt_dense.registry` finds
the module that holds it.
"""

from vpt_dense import multimodal  # noqa: F401 - before anything imports mmpretrain
from vpt_dense.version import __version__

__all__ = ['__version__']
