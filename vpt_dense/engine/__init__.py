"""The parts of a run beside the model, such as distributed CPU processes and mixed precision."""

from vpt_dense.engine.amp import AmpOptimWrapper
from vpt_dense.engine.sync_bn import CPUSyncBN

__all__ = ['AmpOptimWrapper', 'CPUSyncBN']
