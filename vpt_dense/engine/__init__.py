"""What a run needs beside the model: distributed CPU processes and mixed precision."""

from vpt_dense.engine.amp import AmpOptimWrapper
from vpt_dense.engine.sync_bn import CPUSyncBN

__all__ = ['AmpOptimWrapper', 'CPUSyncBN']
