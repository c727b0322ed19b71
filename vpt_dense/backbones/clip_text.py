"""The text tower of CLIP: the loop over blocks of the image towers, on words."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.backbones.attention import attention
from vpt_dense.backbones.beside import spread
from vpt_dense.backbones.clip_vision import NORM, activation, check_activation
from vpt_dense.backbones.encoder_layer import PromptedEncoderLayer
from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.backbones.tuned_block import TunedBlock
from vpt_dense.prompts import TokenLayout
from vpt_dense.registry import MODELS
from vpt_dense.tokenizing import Tokenizer

#: OpenAI's sizes; all others are given as a dict.
ARCHS = {
    'base': dict(embed_dims=512, num_layers=12, num_heads=8, feedforward_channels=2048),
    'large': dict(embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=3072),
}


class CausalEncoderLayer(PromptedEncoderLayer):
    """A block in which a token attends to those before it and to itself.

    A prompt that acts through keys and values alone would be seen by the token of the start too,
    which comes before it: here all prompts are tokens.
    """

    takes_keys_values = False

    @classmethod
    def adopt(cls, block: nn.Module) -> None:
        """See :meth:`.TunedBlock.adopt`."""
        super().adopt(block)
        block.attn.scaled_dot_product_attention = partial(attention, is_causal=True)


@MODELS.register_module()
class CLIPTextTransformer(TokenTuning, BaseModule):
    """The text tower of CLIP (Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020).

    A block sees ``[start | prompts | words . end]``. Positions are counted with the prompts, as
    CoOp has it. Texts are as long as the longest of them: what comes behind the end of a text is
    seen by none of its tokens.

    Args:
        arch: 'base' (of ViT-B), 'large' (of ViT-L), or a dict with embed_dims, num_layers,
            num_heads and feedforward_channels.
        project_dims: Width D of the space that texts share with images.
        vocab_size: Number of tokens that are known.
        context_length: Most tokens of a text, start, end and prompts among them.
        quick_gelu: As in :class:`.CLIPVisionTransformer`.
        tokenizer: What makes tokens of texts, see :class:`vpt_dense.tokenizing.Tokenizer`.
        prompt: Config of a prompt, as in :class:`.VisionTransformer`: a
            :class:`vpt_dense.prompts.ContextPrompt`, for instance.
        adapters: Configs of adapters, as there.
        trainable: Patterns of what trains, as there. Default: prompts and adapters; if there are
            none, nothing.
        memory: As there.
        with_cp: As there.
        init_cfg: As there; the file is that of the whole model, or of its text tower.

    Attributes:
        logit_scale: The logarithm of what cosines are multiplied by; it belongs to both towers.

    Raises:
        ValueError: If an argument is out of its range.
    """

    weights_family = 'clip_text'
    offers = frozenset({'tokens', 'one width', 'parts', 'texts'})
    stem = ('token_embedding',)

    def __init__(
        self,
        arch: str | dict = 'base',
        project_dims: int = 512,
        vocab_size: int = 49408,
        context_length: int = 77,
        quick_gelu: bool = True,
        tokenizer: str = 'open_clip',
        prompt: dict | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        memory: str = 'default',
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for key in ('project_dims', 'vocab_size', 'context_length'):
            check_count(locals()[key], f'text.{key}')
        sizes = text_arch(arch)
        self.embed_dims, self.num_layers = sizes['embed_dims'], sizes['num_layers']
        self._quick_gelu = quick_gelu
        self.project_dims, self.context_length = project_dims, context_length
        self.tokenizer = Tokenizer(tokenizer)
        self.token_embedding = nn.Embedding(vocab_size, self.embed_dims)
        self.pos_embed = nn.Parameter(torch.empty(1, context_length, self.embed_dims))
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                self.embed_dims, sizes['num_heads'], sizes['feedforward_channels'],
                act_cfg=activation(quick_gelu), norm_cfg=NORM)
            for _ in range(self.num_layers))
        self.ln1 = build_norm_layer(NORM, self.embed_dims)
        self.proj = nn.Linear(self.embed_dims, project_dims, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592600))  # log(1 / 0.07), as CLIP starts
        # As CLIP starts.
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        nn.init.normal_(self.proj.weight, std=self.embed_dims**-0.5)
        if trainable is None and prompt is None and not adapters:
            trainable = []
        self.tune(prompt, None, adapters, trainable, 'tokens', memory, with_cp)

    def load_base(self, checkpoint: str, keys: dict | None = None) -> str:
        """As the parent, with a look at what is said of the weights beside them."""
        check_activation(checkpoint, self._quick_gelu)
        return super().load_base(checkpoint, keys)

    def adopt_block(self, block: TunedBlock) -> None:
        """See :meth:`.TokenTuning.adopt_block`."""
        CausalEncoderLayer.adopt(block)

    def named_blocks(self) -> list[tuple[str, TunedBlock]]:
        """See :meth:`.TokenTuning.named_blocks`."""
        return [(f'layers.{i}', layer) for i, layer in enumerate(self.layers)]

    def patch_size_pixels(self) -> tuple[int, int]:
        """There are no patches: prompts that start by their size start as if it was 1."""
        return 1, 1

    def out_dims(self) -> list[int]:
        """See :meth:`.TokenTuning.out_dims`."""
        return [self.project_dims]

    def output_blocks(self) -> list[int]:
        """See :meth:`.TokenTuning.output_blocks`."""
        return [self.num_layers - 1]

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`.TunedBackbone.map_strides`."""
        return []

    def describe(self) -> str:
        """See :meth:`.FrozenBase.describe`."""
        return (f'{type(self).__name__} of width {self.embed_dims}, {self.num_layers} blocks and '
                f'{self.context_length} tokens')

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn texts into numbers of tokens.

        Args:
            texts: T of them.

        Returns:
            Tokens (T, L), int64, zeros behind the end, L at most ``context_length`` without the
            prompts; and where the end of each is, (T,), int64.

        Raises:
            UserError: If a text is too long, or the tokenizer's files are not there.
        """
        own = 0 if self.prompt is None else self.prompt.num_tokens
        behind = 0 if self.prompt is None else self.prompt.least_words
        return self.tokenizer(
            texts, self.context_length - own, len(self.token_embedding.weight), 1 + behind)

    def forward(self, ids: Tensor, ends: Tensor, image: Tensor | None = None) -> Tensor:
        """Compute the embeddings of texts.

        Args:
            ids: Tokens (T, L), as :meth:`tokenize` returns them.
            ends: Where the ends are, (T,).
            image: The embedding of one image, (D,), for prompts that depend on it; or those of
                several, (B, D): T is then all texts B times, image after image.

        Returns:
            (T, D), not normalised.
        """
        if self.prompt is None:
            prepared = None
        else:
            prepared = self.prompt.prepare() if image is None else self.prompt.prepare_for(image)
        if image is not None and image.ndim == 2:
            number = image.shape[0]  # not len(), which is a constant in an exported graph
            prepared = tuple(spread(each, number * len(ids)) for each in prepared)
            ids, ends = ids.repeat(number, 1), ends.repeat(number)
        x = self.token_embedding(ids)  # (T, L, C)
        layout = TokenLayout(1, 0, (1, ids.shape[1] - 1))
        for i, (_, block) in enumerate(self.named_blocks()):
            x, layout, arguments = self.enter_block(x, i, layout, prepared)  # (T, 1 + P + L - 1, C)
            if i == 0:
                x = self._place(x, ends, layout)
            x = block(x, **arguments)
            for change in self.changes():
                x = change.after_block(x, i, layout)
        last = x[torch.arange(x.shape[0], device=x.device), ends + layout.num_prompts]
        return self.proj(self.ln1(last))

    def _place(self, x: Tensor, ends: Tensor, layout: TokenLayout) -> Tensor:
        """Put words and prompts in order, and tell them their places."""
        if layout.num_prompts:
            order = self.prompt.order(x.shape[1], ends)
            if order is not None:
                x = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
        return x + self.pos_embed[:, : x.shape[1]]

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'context_length={self.context_length}, tokenizer={self.tokenizer.source!r}'


def text_arch(arch: Any) -> dict[str, int]:
    """The sizes of a text tower.

    Raises:
        ValueError: If ``arch`` is none.
    """
    needed = set(ARCHS['base'])
    if isinstance(arch, str) and arch in ARCHS:
        return ARCHS[arch]
    if not isinstance(arch, dict) or set(arch) != needed:
        raise ValueError(
            f'text.arch must be one of {", ".join(ARCHS)} or a dict of '
            f'{", ".join(sorted(needed))}, found {arch!r}')
    return arch
