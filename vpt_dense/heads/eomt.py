"""EoMT: queries that join the last blocks of the encoder itself."""

import re
from collections.abc import Sequence

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from vpt_dense.argument_checks import check_patterns, is_int
from vpt_dense.errors import UserError
from vpt_dense.heads.query_head import QueryHead
from vpt_dense.registry import MODELS

#: Names of transformers' ``EomtForUniversalSegmentation`` -> ours.
_RENAMED = (
    (r'^query\.', 'q.'),
    (r'^upscale_block\.block\.(\d+)\.layernorm2d\.', r'upscale.\1.norm.'),
    (r'^upscale_block\.block\.', 'upscale.'),
    (r'^mask_head\.fc1\.', 'mask_head.0.'),
    (r'^mask_head\.fc2\.', 'mask_head.2.'),
    (r'^mask_head\.fc3\.', 'mask_head.4.'),
    (r'^class_predictor\.', 'class_head.'),
)
#: Buffers of theirs: weights of the loss, and the share of queries that is bound.
_BOUND = 'attn_mask_probs'
_KEYS = ('type', 'checkpoint', 'allow_missing')


@MODELS.register_module()
class EoMTHead(QueryHead):
    """EoMT (T. Kerssies et al., CVPR 2025, https://arxiv.org/abs/2503.19108), semantic.

    ``num_queries`` learnt queries join the tokens in front of the encoder's last ``num_blocks``
    blocks and pass these together with them; queries and patches leave through the encoder's last
    norm. There is no decoder beside the encoder. Prompts and adapters act on queries in these
    blocks as on all other tokens. What a query finds, how it is trained and what becomes of it says
    :class:`vpt_dense.heads.query_head.QueryHead`; it is bound to its mask among the patches and
    sees all other tokens, prompts too.

    The authors tune the whole encoder.

    Args:
        in_channels: C.
        num_classes: Classes.
        num_queries: Q.
        num_blocks: How many of the encoder's last blocks queries pass; the authors' are 3 of 12, 4
            of 24.
        num_upscalings: As there; 2 for patches of 16, 2 or 1 for those of 14.
        unbind: As there; None: the authors' for four blocks on DINOv3, spread alike over others.
        num_points: As there.
        class_weight: As there.
        mask_weight: As there.
        dice_weight: As there.
        no_object_weight: As there.
        ignore_index: The label that does not count.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads the head of a model of
            transformers' (``model.safetensors``); name it in the backbone's ``init_cfg`` too. What
            ``allow_missing``, patterns of names (``^class_head``), matches starts at random.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    #: 3,000, 6,520 and 13,040 of 20,208 iterations, and 3,260 of them.
    unbound = (0.148, 0.323, 0.645, 0.161)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_queries: int = 100,
        num_blocks: int = 3,
        num_upscalings: int = 2,
        unbind: Sequence[Sequence[float]] | None = None,
        num_points: int = 12544,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        ignore_index: int = 255,
        init_cfg: dict | None = None,
    ) -> None:
        if not is_int(in_channels, 1):
            raise ValueError(
                f"decode_head.in_channels must be the encoder's width, found {in_channels!r}")
        super().__init__(
            in_channels, num_classes, num_queries, num_blocks, num_upscalings, unbind, num_points,
            class_weight, mask_weight, dice_weight, no_object_weight,
            in_channels=in_channels, in_index=0, ignore_index=ignore_index, init_cfg=init_cfg)

    def predictions(
        self, inputs: Sequence[Tensor], every: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """See :meth:`.QueryHead.predictions`; the backbone has made those before the last.

        Args:
            inputs: Patches behind the last block (B, C, h, w), queries (B, Q, C), and in training
                masks and classes in front of each block.
            every: There is no choice left.
        """
        if len(inputs) < 2:
            raise ValueError(
                "decode_head: EoMTHead reads queries that went through the backbone; take "
                "model.type='vpt_dense.EncoderDecoder', and list it under decode_head alone")
        maps, queries, *before = inputs
        found = list(zip(before[::2], before[1::2], strict=True))
        return [*found, self.predict_from(queries, maps)]

    def init_weights(self) -> None:
        """Start at random, or from the file that ``init_cfg`` names.

        Raises:
            UserError: If tensors of it are missing, left over or of another shape.
        """
        if self.init_cfg is None:
            return
        self._is_init = True
        unknown = [key for key in self.init_cfg if key not in _KEYS]
        if unknown or self.init_cfg.get('type') != 'Pretrained':
            raise UserError(
                "decode_head.init_cfg: dict(type='Pretrained', checkpoint=FILE), perhaps with "
                f'allow_missing, was expected, found {dict(self.init_cfg)!r}')
        file, patterns = self.init_cfg['checkpoint'], self.init_cfg.get('allow_missing') or []
        check_patterns(patterns, 'decode_head.init_cfg.allow_missing')
        state = CheckpointLoader.load_checkpoint(file, map_location='cpu')
        found = _head_of(state.get('state_dict', state))
        if not found:
            raise UserError(
                f"decode_head.init_cfg: {file} is no EoMT of transformers' (it has no "
                'query.weight)')
        if float(found.pop(_BOUND, torch.zeros(1)).max()) > 0:
            raise UserError(
                f'decode_head.init_cfg: the queries of {file} are bound to their masks in tests, '
                f'as in the middle of a training ({_BOUND} is not 0); here they are free in tests')
        own = self.state_dict()
        free = [name for name in own if any(re.search(pattern, name) for pattern in patterns)]
        wrong = [
            f'{name} is {tuple(found[name].shape) if name in found else "missing"}, here '
            f'{tuple(own[name].shape) if name in own else "unknown"}'
            for name in dict.fromkeys([*own, *found])
            if name not in free and (name not in found or name not in own
                                     or found[name].shape != own[name].shape)]
        if wrong:
            raise UserError(
                f'decode_head.init_cfg: {file} does not fit: {"; ".join(wrong[:3])}; set '
                'decode_head.num_classes, num_queries and num_upscalings as it has them, or '
                r"init_cfg.allow_missing=[r'^class_head\.'] for other classes")
        self.load_state_dict({**own, **{n: found[n] for n in own if n not in free}})


def _head_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head in a state dict of transformers', by our names; empty: it has none."""
    if 'query.weight' not in state:
        return {}
    found = {_BOUND: state[_BOUND]} if _BOUND in state else {}
    for name, tensor in state.items():
        for pattern, ours in _RENAMED:
            if re.search(pattern, name):
                found[re.sub(pattern, ours, name)] = tensor
                break
    return found
