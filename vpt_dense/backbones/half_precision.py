"""Frozen weights that are held in half precision."""

import torch
from torch import nn

from vpt_dense.argument_checks import check_choice
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.tuning import is_added

DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


def hold_frozen_in(name: str, backbone: TunedBackbone) -> torch.dtype:
    """Turn the frozen weights of linear layers and convolutions into another type, in place.

    Args:
        name: Of the type, a key of :data:`DTYPES`.
        backbone: Frozen as it will stay; weights of prompts and adapters are left alone.

    Returns:
        The type.

    Raises:
        ValueError: If there is no such type, or no such weight is frozen.
    """
    check_choice(name, 'frozen_dtype', [*DTYPES, None])
    frozen = [
        parameter
        for own, module in backbone.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not is_added(own)
        for parameter in module.parameters(recurse=False)
        if not parameter.requires_grad
    ]
    if not frozen:
        raise ValueError(
            f'frozen_dtype={name!r}, but trainable={backbone.trainable} leaves no weight of a '
            'linear layer or convolution frozen; leave frozen_dtype out'
        )
    for parameter in frozen:
        parameter.data = parameter.data.to(DTYPES[name])
    return DTYPES[name]
