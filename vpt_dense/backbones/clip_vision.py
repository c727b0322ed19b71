"""The image tower of CLIP, with the projection into the space that images share with texts."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_choice, check_count, check_flag
from vpt_dense.backbones.beside import is_watched
from vpt_dense.backbones.vision_transformer import VisionTransformer
from vpt_dense.errors import UserError
from vpt_dense.prompts import TokenLayout
from vpt_dense.registry import MODELS

#: What CLIP's transformers have, OpenAI's and open_clip's.
NORM = dict(type='LN', eps=1e-5)


def activation(quick_gelu: bool) -> dict[str, str]:
    """X sigmoid(1.702 x) of OpenAI's models, or the GELU of most of LAION's."""
    check_flag(quick_gelu, 'quick_gelu')
    return dict(type='mmpretrain.QuickGELU' if quick_gelu else 'GELU')


def check_activation(checkpoint: str, quick_gelu: bool) -> None:
    """Compare ``quick_gelu`` with what a file beside the weights says, if there is one.

    The weights themselves fit either way. Read are ``config.json`` of transformers and
    ``open_clip_config.json``, in the folder of a local file.

    Raises:
        UserError: If they differ.
    """
    file = Path(checkpoint)
    for name in ('open_clip_config.json', 'config.json') if file.is_file() else ():
        try:
            said = json.loads((file.parent / name).read_text(encoding='utf-8'))
            if 'model_cfg' in said:
                found = said['model_cfg'].get('quick_gelu', False)
            elif said.get('model_type') == 'clip':
                # Left out where it is transformers' default.
                found = said['vision_config'].get('hidden_act', 'quick_gelu') == 'quick_gelu'
            else:
                continue
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue  # none, or one of something else
        if bool(found) != quick_gelu:
            raise UserError(
                f'quick_gelu is {quick_gelu}, but the weights {file} were trained with '
                f'{bool(found)}, as {name} beside them says: set model.backbone.quick_gelu='
                f'{bool(found)}')


@MODELS.register_module()
class CLIPVisionTransformer(VisionTransformer):
    """The image tower of CLIP (Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020).

    A :class:`VisionTransformer` with a norm in front of its blocks, a patch embedding without bias,
    and a linear layer without bias behind its last norm. Weights of OpenAI, open_clip and
    transformers load as they are (``init_cfg.checkpoint``).

    Args:
        project_dims: Width D of the space that images share with texts.
        quick_gelu: Whether the MLPs have x sigmoid(1.702 x) (OpenAI's weights) or the GELU (most of
            LAION's).
        out_type: 'embedding': that of the image, the projected cls token. 'embeddings': maps of the
            blocks of ``out_indices`` but the last; that of the projected patches behind the last
            block; and the embedding. All others are the parent's, without the projection.
        dense_from: What 'embeddings' projects of the patches: 'tokens', the outputs of the last
            block; 'values', those of a last block in which every patch attends to itself alone
            (Zhou et al., ECCV 2022, https://arxiv.org/abs/2112.01071, section 3.2), as CAT-Seg has
            it.
        norm_prompts: Whether prompts that enter the first block go through the norm in front of it,
            as in MaPLe and SEP. False: they are behind it, as in ZegCLIP.
        **kwargs: As in :class:`VisionTransformer`.

    Raises:
        ValueError: As there, or if one of these is out of its range.
    """

    OUT_TYPES = VisionTransformer.OUT_TYPES | {'embedding', 'embeddings'}

    def __init__(
        self,
        arch: str | dict = 'base',
        *,
        project_dims: int = 512,
        quick_gelu: bool = True,
        out_type: str = 'embedding',
        out_indices: int | Sequence[int] = -1,
        dense_from: str = 'tokens',
        norm_prompts: bool = False,
        prompt: dict | None = None,
        image_prompt: dict | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        prompts_as: str = 'keys_values',
        memory: str = 'default',
        with_cp: bool = False,
        frozen_dtype: str | None = None,
        **kwargs,
    ) -> None:
        check_count(project_dims, 'project_dims')
        check_flag(norm_prompts, 'norm_prompts')
        self.dense_from = check_choice(dense_from, 'dense_from', ('tokens', 'values'))
        if dense_from != 'tokens' and out_type != 'embeddings':
            raise ValueError(
                f"dense_from={dense_from!r} is for out_type='embeddings', out_type is {out_type!r}")
        if image_prompt is not None and out_type == 'embeddings':
            raise ValueError(
                "image_prompt: out_type='embeddings' puts out maps and a vector, whose borders "
                'cannot be told; leave it out')
        if norm_prompts and prompt is None:
            raise ValueError('norm_prompts=True is for a prompt, and there is none; leave it out')
        layers = dict(kwargs.pop('layer_cfgs', {}))
        if 'act_cfg' in layers:
            raise ValueError('layer_cfgs.act_cfg: quick_gelu says the activation; leave it out')
        layers['act_cfg'] = activation(quick_gelu)
        self._project_dims, self._norm_prompts = project_dims, norm_prompts
        self._quick_gelu = quick_gelu
        super().__init__(
            arch=arch, out_type=out_type, out_indices=out_indices,
            **{'norm_cfg': NORM, 'pre_norm': True, **kwargs}, layer_cfgs=layers,
            prompt=prompt, image_prompt=image_prompt, adapters=adapters, trainable=trainable,
            prompts_as=prompts_as, memory=memory, with_cp=with_cp, frozen_dtype=frozen_dtype)

    def load_base(self, checkpoint: str, keys: dict | None = None) -> str:
        """As the parent, with a look at what is said of the weights beside them."""
        check_activation(checkpoint, self._quick_gelu)
        return super().load_base(checkpoint, keys)

    @property
    def _projects(self) -> bool:
        return self.out_type in ('embedding', 'embeddings')

    def tune(self, *args, **kwargs) -> None:
        """See :meth:`.TokenTuning.tune`; before it the projection is there, which may train."""
        last = self.num_layers - 1
        if self._projects and max(self.out_indices) != last:
            raise ValueError(
                f"out_type={self.out_type!r} projects the tokens behind the last block {last}, "
                f'which is not among out_indices={list(self.out_indices)}')
        if self.out_type == 'embedding' and len(self.out_indices) > 1:
            raise ValueError(
                "out_type='embedding' puts out one vector, out_indices="
                f'{list(self.out_indices)} names {len(self.out_indices)} blocks')
        if self._projects:
            if not self.final_norm:
                raise ValueError(f'final_norm=False: out_type={self.out_type!r} projects behind it')
            if self.cls_token is None:
                raise ValueError(
                    f'with_cls_token=False: out_type={self.out_type!r} projects that token')
            self.proj = nn.Linear(self.embed_dims, self._project_dims, bias=False)
            nn.init.normal_(self.proj.weight, std=self.embed_dims**-0.5)
        super().tune(*args, **kwargs)

    def out_dims(self) -> list[int]:
        """See :meth:`TokenBackbone.out_dims`."""
        if not self._projects:
            return super().out_dims()
        maps = [self.embed_dims] * (len(self.out_indices) - 1)
        return [*maps, *[self._project_dims] * (1 if self.out_type == 'embedding' else 2)]

    def read_blocks(self) -> list:
        """See :meth:`TokenBackbone.read_blocks`."""
        return self.block_list()[:-1] if self.out_type == 'embedding' else super().read_blocks()

    def reads_only_first(self, i: int) -> bool:
        """See :meth:`TokenBackbone.reads_only_first`."""
        if self.out_type != 'embedding':
            return super().reads_only_first(i)
        return i == self.num_layers - 1 and not is_watched((self.layers[i], self.ln1))

    def prompt_tokens(
        self, x: Tensor, i: int, prepared: object = None, layout: TokenLayout | None = None
    ) -> Tensor | None:
        """See :meth:`.TokenTuning.prompt_tokens`."""
        tokens = super().prompt_tokens(x, i, prepared, layout)
        if i == 0 and self._norm_prompts and tokens is not None:
            tokens = self.pre_norm(tokens)
        return tokens

    def _through(self, block, i, layout, needed, arguments, x) -> Tensor:
        """See :meth:`.TokenBackbone._through`."""
        out = super()._through(block, i, layout, needed, arguments, x)
        if self.dense_from == 'tokens' or i != self.num_layers - 1:
            return out
        first, patches = out[:, : layout.num_first + layout.num_prompts], layout.patches(x)
        values = block.attn.qkv(block.ln1(patches))[..., 2 * self.embed_dims :]
        alone = TokenLayout(0, 0, layout.grid)
        made = patches + block.attn.out_drop(block.attn.gamma1(block.attn.proj(values)))
        for adapter in block.adapters:
            made = adapter.after_attention(made, patches, i, alone)
        return torch.cat((first, block._feed(made, alone)), dim=1)

    def leave_block(
        self, x: Tensor, i: int, layout: TokenLayout, outs: list[Tensor]
    ) -> tuple[Tensor, TokenLayout]:
        """See :meth:`.TokenBackbone.leave_block`."""
        if not self._projects:
            return super().leave_block(x, i, layout, outs)
        if i == self.num_layers - 1:
            x = self.ln1(x)
            if self.out_type == 'embeddings':
                outs.append(self.proj(layout.patches(x)).unflatten(1, layout.grid).permute(
                    0, 3, 1, 2))  # (B, D, h, w)
            outs.append(self.proj(x[:, 0]))  # (B, D)
        elif i in self.out_indices:
            outs.append(layout.patches(x).unflatten(1, layout.grid).permute(0, 3, 1, 2))
        return x, layout
