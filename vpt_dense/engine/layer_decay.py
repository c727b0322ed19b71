"""Learning rates that fall with a parameter's depth, for backbones with prompts and adapters."""

from collections.abc import Mapping
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from vpt_dense.argument_checks import is_number
from vpt_dense.errors import UserError, suggest
from vpt_dense.weights.base import FrozenBase

#: mmseg's names of one constructor, which knows backbones by the names of their classes.
_MMSEG = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')
#: mmpretrain's, which asks the model.
_MMPRETRAIN = 'LearningRateDecayOptimWrapperConstructor'
_PLACE = 'optim_wrapper.paramwise_cfg'


class LayerDecay(DefaultOptimWrapperConstructor):
    """mmseg's ``LearningRateDecayOptimizerConstructor`` for the backbones of this package.

    A parameter of depth i of n trains at the rate lr * decay_rate^(n - i - 1). The stem (patches,
    positions, cls and register tokens) has depth 0, block j has j + 1, and what is no pretrained
    layer has the last one and the full rate: heads, prompts, adapters and the norms behind the
    blocks. Biases and all vectors have no weight decay. As in mmseg, whose groups these are.

    ``paramwise_cfg`` takes ``num_layers``, ``decay_rate`` (or ``layer_decay_rate``), ``decay_type``
    and, which mmseg's ignores, ``custom_keys`` with ``lr_mult`` and ``decay_mult``: the longest key
    that is part of a name counts, on top of its depth.
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Add a group for each depth and weight decay.

        Raises:
            UserError: If ``paramwise_cfg`` lacks something, has a key that would do nothing, or
                counts other layers than the backbone has.
        """
        cfg = self.paramwise_cfg
        known = ('num_layers', 'decay_rate', 'layer_decay_rate', 'decay_type', 'custom_keys')
        for key in cfg.keys() - set(known):
            raise UserError(
                f'{_PLACE}.{key} does nothing where rates fall by layers{suggest(key, known)}')
        rate = cfg.get('decay_rate', cfg.get('layer_decay_rate'))
        if not is_number(rate) or not 0 < rate <= 1:
            raise UserError(
                f'{_PLACE}.decay_rate must be a number above 0, 1 at most, found {rate!r}')
        custom_keys = sorted(cfg.get('custom_keys', {}), key=lambda key: (-len(key), key))
        groups: dict[tuple, dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            depth, number = module.backbone.get_layer_depth(name, 'backbone.')
            if cfg.get('num_layers') != number - 2:
                raise UserError(
                    f'{_PLACE}.num_layers is {cfg.get("num_layers")!r}, but the backbone has '
                    f'{number - 2} layers; set it to {number - 2}'
                )
            key = next((key for key in custom_keys if key in name), None)
            custom = cfg['custom_keys'][key] if key else {}
            flat = parameter.ndim == 1 or name.endswith('.bias')
            group = groups.setdefault((depth, flat, key), dict(params=[], param_names=[]))
            group['params'].append(parameter)
            group['param_names'].append(name)
            group['lr_scale'] = rate ** (number - depth - 1) * custom.get('lr_mult', 1)
            group['lr'] = group['lr_scale'] * self.base_lr
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd * custom.get('decay_mult', 0 if flat else 1)
        params.extend(groups.values())


def known(optim_wrapper: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The config of an optimizer, whose constructor knows the model's backbone.

    Args:
        optim_wrapper: The config.
        model: Whose parameters it will optimize.

    Raises:
        UserError: If it has a key that would do nothing with its constructor, or lacks one.
    """
    kind = optim_wrapper.get('constructor')
    kind = kind.rpartition('.')[2] if isinstance(kind, str) else kind
    paramwise = optim_wrapper.get('paramwise_cfg') or {}
    if kind == _MMPRETRAIN:
        for key, custom in paramwise.get('custom_keys', {}).items():
            if 'lr_mult' in custom:
                raise UserError(
                    f'{_PLACE}.custom_keys.{key}.lr_mult does nothing with the constructor {kind}; '
                    'leave it out (custom_keys=dict(_delete_=True) where a base has it)'
                )
        if (optim_wrapper.get('optimizer') or {}).get('weight_decay') is None:
            raise UserError(
                f'optim_wrapper.optimizer.weight_decay is needed by the constructor {kind}; '
                'set it, to 0 if there is to be none')
    backbone = getattr(model, 'backbone', None)
    if kind not in _MMSEG or not isinstance(backbone, FrozenBase):
        return optim_wrapper
    if paramwise.get('decay_type', 'layer_wise') == 'stage_wise':
        if 'ConvNeXt' in type(backbone).__name__:
            return optim_wrapper
        raise UserError(
            f"{_PLACE}.decay_type='stage_wise' is for ConvNeXt, the backbone is a "
            f"{type(backbone).__name__}; take 'layer_wise'"
        )
    return {**optim_wrapper, 'constructor': LayerDecay}
