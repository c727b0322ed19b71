"""What our backbone is compared with: visual prompt tuning written from its formulas.

All tokens, prompts included, go through all of every block; what comes out at the places of deep
prompts is thrown away before the next block (M. Jia et al., ECCV 2022,
https://arxiv.org/abs/2203.12119, sections 3.1 and 3.2). Attention is a product of matrices, a
softmax and a product of matrices, as in A. Dosovitskiy et al., ICLR 2021,
https://arxiv.org/abs/2010.11929, appendix A. It is slow and keeps a lot on purpose: these are the
formulas as they stand.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reference(nn.Module):
    """The plain algorithm on the weights of one of our backbones.

    Args:
        backbone: A `vpt_dense.VisionTransformer` whose prompt, if there is one, is a
            `vpt_dense.TokenPrompt` at full width from the first block on. Its parameters are used,
            not copied; dropout is left out. Images must have its `img_size`.

    Raises:
        ValueError: If the backbone's prompt is another one.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        prompt = backbone.prompt
        if prompt is not None and (
            prompt.start > 0 or prompt.shared or not prompt.keep_outputs
            or not isinstance(prompt.project, nn.Identity)
        ):
            raise ValueError(f'the reference has no such prompt: {prompt}')
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Turn images (B, 3, H, W) into the last block's feature map, ((B, C, h, w),)."""
        backbone = self.backbone
        height, width = backbone.patch_resolution
        tokens = self.blocks(images)[-1]
        if backbone.final_norm:
            tokens = normalise(tokens, backbone.ln1)
        patches = tokens[:, -height * width :]  # (B, h w, C): without cls token and prompts
        return (patches.transpose(1, 2).unflatten(2, (height, width)),)

    def blocks(self, images: Tensor) -> list[Tensor]:
        """Compute the output of every block, each (B, 1 + P + N, C), before the final norm."""
        backbone = self.backbone
        prompts = [] if backbone.prompt is None else backbone.prompt.tokens  # (layers, P, C)
        batch = len(images)
        projection = backbone.patch_embed.projection
        patches = F.conv2d(images, projection.weight, projection.bias, projection.stride)
        x = patches.flatten(2).transpose(1, 2)  # (B, N, C)
        x = torch.cat((backbone.cls_token.expand(batch, -1, -1), x), dim=1)
        x = x + backbone.pos_embed  # (B, 1 + N, C)
        num_patches = x.shape[1] - 1
        outs = []
        for i, layer in enumerate(backbone.layers):
            if i < len(prompts):  # deep: new ones before every block; shallow: before the first
                fresh = prompts[i].expand(batch, -1, -1)
                x = torch.cat((x[:, :1], fresh, x[:, -num_patches:]), dim=1)  # (B, 1 + P + N, C)
            x = block(x, layer)
            outs.append(x)
        return outs


def block(x: Tensor, layer: nn.Module) -> Tensor:
    """Compute x + Attention(LN(x)), then x + MLP(LN(x)); tokens (B, N, C)."""
    x = x + attention(normalise(x, layer.ln1), layer.attn)
    first, second = layer.ffn.layers[0][0], layer.ffn.layers[1]
    hidden = F.gelu(F.linear(normalise(x, layer.ln2), first.weight, first.bias))
    return x + F.linear(hidden, second.weight, second.bias)


def attention(x: Tensor, attn: nn.Module) -> Tensor:
    """Compute softmax(Q K^T / sqrt(d)) V with separate query, key and value; tokens (B, N, C)."""
    weights, biases = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
    query, key, value = (
        F.linear(x, weight, bias).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
        for weight, bias in zip(weights, biases, strict=True)
    )  # (B, heads, N, d)
    scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1])
    out = torch.matmul(scores.softmax(dim=-1), value)  # (B, heads, N, d)
    return F.linear(out.transpose(1, 2).flatten(2), attn.proj.weight, attn.proj.bias)


def normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """Layer normalisation over the channels."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
