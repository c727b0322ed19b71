"""mmseg's own vision transformer with deep prompts as tokens, as one would add them to it."""

import torch
from mmseg.models import VisionTransformer
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class TokensVisionTransformer(VisionTransformer):
    """mmseg's ViT: prompts go into every block as tokens and are taken out after it.

    Its blocks and their attention are used as they are.

    Args:
        num_tokens: Prompts P before each block; 0: none.
        **kwargs: As in mmseg.
    """

    def __init__(self, num_tokens: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.requires_grad_(False)
        self.tokens = nn.Parameter(torch.zeros(len(self.layers), num_tokens, self.embed_dims))

    @property
    def embed_dims(self) -> int:
        """Width C."""
        return self.cls_token.shape[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Turn images (B, 3, H, W) into feature maps (B, C, h, w), one for each out_index."""
        x, (height, width) = self.patch_embed(images)  # (B, N, C)
        batch, num_prompts = len(x), self.tokens.shape[1]
        x = torch.cat((self.cls_token.expand(batch, -1, -1), x), dim=1)
        x = self._pos_embeding(x, (height, width), self.pos_embed)
        outs = []
        for i, layer in enumerate(self.layers):
            prompts = self.tokens[i].expand(batch, -1, -1)
            x = layer(torch.cat((x[:, :1], prompts, x[:, 1:]), dim=1))  # (B, 1 + P + N, C)
            x = torch.cat((x[:, :1], x[:, 1 + num_prompts :]), dim=1)  # (B, 1 + N, C)
            if self.final_norm and i == len(self.layers) - 1:
                x = self.norm1(x)
            if i in self.out_indices:
                patches = x[:, 1:].transpose(1, 2)
                outs.append(patches.unflatten(2, (height, width)).contiguous())
        return tuple(outs)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our backbone's weights under the names that they have here."""
    pairs = {
        'attn.qkv.weight': 'attn.attn.in_proj_weight',
        'attn.qkv.bias': 'attn.attn.in_proj_bias',
        'attn.proj': 'attn.attn.out_proj',
        'prompt.tokens': 'tokens',
    }
    new = {}
    for name, tensor in state.items():
        for ours, theirs in pairs.items():
            name = name.replace(ours, theirs)
        new[name] = tensor
    return new
