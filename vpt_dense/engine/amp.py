"""Mixed precision on any machine."""

import torch
from mmengine.optim import AmpOptimWrapper as _AmpOptimWrapper
from mmengine.optim import OptimWrapper

from vpt_dense.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(_AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` on a GPU; bfloat16 autocast without loss scaling on a CPU.

    bfloat16 has the exponent range of float32, so gradients need no scaling.

    Args:
        loss_scale: As in mmengine; no effect on a CPU.
        dtype: As in mmengine; on a CPU always bfloat16.
        **kwargs: Arguments of mmengine's ``OptimWrapper``.
    """

    def __init__(self, loss_scale='dynamic', dtype=None, **kwargs) -> None:
        if torch.cuda.is_available():
            super().__init__(loss_scale=loss_scale, dtype=dtype, **kwargs)
            return
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler('cpu', enabled=False)
        self.cast_dtype = torch.bfloat16

    def load_state_dict(self, state_dict: dict) -> None:
        """Load optimizer and scaler; a checkpoint written on a CPU has no scaler state."""
        if not state_dict.get('loss_scaler', True):
            state_dict.pop('loss_scaler')
        super().load_state_dict(state_dict)
