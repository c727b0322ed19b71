"""The Swin transformer with a choice of what trains."""

from collections.abc import Sequence

from mmpretrain.models import backbones

from vpt_dense.adapters import Block
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.registry import MODELS


@MODELS.register_module()
class SwinTransformer(TunedBackbone, backbones.SwinTransformer):
    """mmpretrain's Swin transformer, bit for bit, with a choice of what trains.

    It takes no prompts yet. ``pad_small_map=True`` is what segmentation needs: windows stay whole
    where the map is smaller than one, as in mmseg.

    Args:
        trainable: Regular expressions, searched in the names of this backbone's parameters; those
            that match train, all others are frozen here and now. Default: everything. While
            anything is frozen, the whole backbone stays in eval mode (dropout, stochastic depth).
        init_cfg: ``dict(type='Pretrained', checkpoint=ADDRESS)`` loads pretrained weights of any
            known format of a Swin; a tensor that is missing, left over or of another shape is an
            error (see :func:`vpt_dense.weights.compute`). The published weights hold the last
            norm alone: with several ``out_indices``, name the others in
            ``init_cfg.allow_missing``.
        **kwargs: As in :class:`mmpretrain.SwinTransformer`.

    Raises:
        ValueError: If ``frozen_stages`` is set too, or a pattern of ``trainable`` matches no
            parameter; the message names it.
    """

    weights_family = 'swin'  # which formats of pretrained weights it takes

    def __init__(
        self,
        trainable: Sequence[str] | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        if kwargs.get('frozen_stages', -1) >= 0:
            raise ValueError(
                f'frozen_stages={kwargs["frozen_stages"]} and `trainable` are two ways to say the '
                r"same: name what trains, for instance trainable=[r'^stages\.3\.', r'^norm3\.']"
            )
        super().__init__(init_cfg=init_cfg, **kwargs)
        self.tune(None, None, None, trainable)

    def blocks(self) -> list[Block]:
        """See :meth:`TunedBackbone.blocks`."""
        return [
            Block(
                name=f'stages.{s}.blocks.{i}',
                module=block,
                embed_dims=stage.embed_dims,
                num_heads=block.attn.w_msa.num_heads,
                norm1=block.norm1,
                qkv=block.attn.w_msa.qkv,
                proj=block.attn.w_msa.proj,
                norm2=block.norm2,
                ffn=block.ffn,
                mlp=block.ffn.layers,
                fc1=block.ffn.layers[0][0],
                fc2=block.ffn.layers[1],
            )
            for s, stage in enumerate(self.stages)
            for i, block in enumerate(stage.blocks)
        ]
