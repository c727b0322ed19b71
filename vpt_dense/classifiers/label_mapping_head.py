"""A head that uses classes of a pretrained classifier as the classes of another task."""

import torch
from mmpretrain.models.heads import ClsHead
from torch import Tensor, nn

from vpt_dense.argument_checks import check_choice, check_count
from vpt_dense.errors import UserError
from vpt_dense.registry import MODELS
from vpt_dense.weights import read_state_dict


@MODELS.register_module()
class LabelMappingHead(ClsHead):
    """Scores each target class by one class of a pretrained classifier; nothing here trains.

    Output mapping of visual prompting (Chen et al., CVPR 2023, https://arxiv.org/abs/2211.11635,
    section 3): the prompt in image space is all that is tuned. Which source class stands for a
    target class is found by :class:`vpt_dense.LabelMappingHook` from how often the network, with
    its prompt as it is, predicts each source class for the training images of each target class;
    no source class is taken twice.

    Args:
        num_classes: Target classes T; those of the data.
        in_channels: Width C of the features.
        num_source_classes: Classes S of the pretrained classifier, at least T.
        mode: 'iterative' (ILM): the mapping is found anew before every epoch; 'frequency' (FLM):
            once, before training.
        init_cfg: ``dict(type='Pretrained', checkpoint=ADDRESS)``: the file of weights that holds
            the classifier, a linear layer (S, C) with a bias; ``name`` says which one if there are
            several. None: it stays random.
        **kwargs: As in :class:`mmpretrain.ClsHead`.

    Attributes:
        fc: The pretrained classifier, frozen.
        mapping: Buffer, (T,), int64: the source class of each target class; -1 until it is found.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_source_classes: int = 1000,
        mode: str = 'iterative',
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        check_count(num_classes, 'head.num_classes')
        check_count(in_channels, 'head.in_channels')
        check_count(num_source_classes, 'head.num_source_classes')
        check_choice(mode, 'head.mode', ('iterative', 'frequency'))
        if num_source_classes < num_classes:
            raise ValueError(
                f'head.num_source_classes must be at least the {num_classes} classes of the data, '
                f'found {num_source_classes}'
            )
        is_file = isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained'
        if init_cfg and not (is_file and 'checkpoint' in init_cfg):
            raise ValueError(
                "head.init_cfg must be dict(type='Pretrained', checkpoint=ADDRESS) or None, found "
                f'{init_cfg!r}'
            )
        self.num_classes = num_classes
        self.mode = mode
        self.fc = nn.Linear(in_channels, num_source_classes).requires_grad_(False)
        self.register_buffer('mapping', torch.full((num_classes,), -1))

    def init_weights(self) -> None:
        """Load the pretrained classifier.

        Raises:
            UserError: If the file cannot be read, or holds no such layer or several.
        """
        if self.init_cfg:
            self.load_source(self.init_cfg['checkpoint'], self.init_cfg.get('name'))
        self._is_init = True

    def load_source(self, checkpoint: str, name: str | None = None) -> None:
        """Load the classifier from a file of weights.

        Args:
            checkpoint: Path or address, see :func:`vpt_dense.weights.read_state_dict`.
            name: Name of the layer in it; None: the only one of the right shape.
        """
        tensors = read_state_dict(checkpoint)
        shape = tuple(self.fc.weight.shape)
        found = [
            weight.removesuffix('.weight') for weight, tensor in tensors.items()
            if weight.endswith('.weight') and tuple(tensor.shape) == shape
            and weight.removesuffix('weight') + 'bias' in tensors
        ]  # fmt: skip
        chosen = [layer for layer in found if name in (None, layer)]
        if len(chosen) != 1:
            raise UserError(
                f'model.head.init_cfg: {checkpoint} has {len(found)} linear layers of '
                f'{shape[1]} features and {shape[0]} classes ({", ".join(found[:5]) or "none"}), '
                f'one{f" named {name!r}" if name else ""} is needed; set init_cfg.name, '
                'num_source_classes or in_channels, or choose other weights'
            )
        with torch.no_grad():
            for kind in ('weight', 'bias'):
                self.fc.get_parameter(kind).copy_(tensors[f'{chosen[0]}.{kind}'])

    def source_scores(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Turn features, the last of them (B, C), into scores of the source classes, (B, S)."""
        return self.fc(self.pre_logits(feats))

    def set_mapping(self, counts: Tensor) -> None:
        """Take the mapping from how often a source class was predicted for a target class.

        Args:
            counts: (T, S), integers.
        """
        self.mapping.copy_(one_to_one(counts))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Turn features, the last of them (B, C), into scores of the target classes, (B, T)."""
        return self.source_scores(feats)[:, self.mapping]

    def loss(self, feats: tuple[Tensor, ...], data_samples: list, **kwargs) -> dict[str, Tensor]:
        """See :meth:`mmpretrain.ClsHead.loss`."""
        self._check_mapping()
        return super().loss(feats, data_samples, **kwargs)

    def predict(self, feats: tuple[Tensor, ...], data_samples: list | None = None) -> list:
        """See :meth:`mmpretrain.ClsHead.predict`."""
        self._check_mapping()
        return super().predict(feats, data_samples)

    def _check_mapping(self) -> None:
        if self.mapping[0] < 0:
            raise UserError(
                'LabelMappingHead has no mapping: it is found when training begins by '
                "custom_hooks = [dict(type='vpt_dense.LabelMappingHook'), ...], or comes with a "
                'checkpoint'
            )


def one_to_one(counts: Tensor) -> Tensor:
    """Give each target class a source class of its own, greedily by frequency.

    The pair with the largest count is taken and both its classes are left out, until all target
    classes have one; of equal counts that of the first target class, then source class.

    Args:
        counts: (T, S), T <= S: how often source class s was predicted for target class t.

    Returns:
        (T,), int64, on the CPU: source classes, no two alike.
    """
    left = counts.to('cpu', torch.int64, copy=True).numpy()
    mapping = torch.full((len(left),), -1)
    for _ in range(len(left)):
        target, source = divmod(int(left.argmax()), left.shape[1])
        mapping[target] = source
        left[target], left[:, source] = -1, -1
    return mapping
