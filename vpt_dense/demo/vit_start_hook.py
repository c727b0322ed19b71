"""A better start than random for a vision transformer trained from scratch on few images."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from torch import Tensor
from torch.nn import functional

from vpt_dense.params import unwrap
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class ViTStartHook(Hook):
    """Sets the start of a vision transformer from the statistics of its training images.

    - The patch embedding whitens: every output has about unit variance and all are uncorrelated.
      At random it shows little but the mean colour of a patch, by far its largest component.
    - The position embedding is the two-dimensional sine-cosine table (X. Chen, S. Xie, K. He, "An
      Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021, arXiv
      2104.02057).
    - Attention looks at similar tokens, hence near ones, and its output opposes the input a
      little, as in trained models: A. Trockman, J. Z. Kolter, "Mimetic Initialization of
      Self-Attention Layers", ICML 2023, arXiv 2305.09828, with their factors.

    Does nothing when a run is resumed or begins with ``load_from``.

    Args:
        num_images: Training images for the statistics.
        eps: Added to the variance of every component (images normalised to unit
            variance), so that noise is not blown up to the strength of shapes.
    """

    priority = 'VERY_HIGH'  # before the first iteration of anything else

    def __init__(self, num_images: int = 1000, eps: float = 0.5):
        self.num_images = num_images
        self.eps = eps

    def before_train(self, runner: Runner):
        """Overwrites the start weights of `model.backbone`.

        Args:
            runner: At iteration 0, else nothing is done.
        """
        if runner.iter > 0 or runner._has_loaded:
            return
        model = unwrap(runner.model)
        backbone = model.backbone
        # The data set, not the loader: the order of the training images stays as it is.
        dataset = runner.train_dataloader.dataset
        indices = torch.linspace(0, len(dataset) - 1, min(self.num_images, len(dataset))).int()
        images = [dataset[int(index)]['inputs'] for index in indices]
        images = model.data_preprocessor(dict(inputs=images))['inputs']
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            whiten(backbone.patch_embed.projection, images, self.eps, generator)
            rows, columns = backbone.patch_resolution
            if rows == columns:
                table = build_2d_sincos_position_embedding(
                    rows, backbone.embed_dims, cls_token=True)
                backbone.pos_embed.copy_(table)
            for layer in backbone.layers:
                mimic(layer.attn, generator)


def whiten(projection: torch.nn.Conv2d, images: Tensor, eps: float, generator: torch.Generator):
    """Makes a patch embedding whiten the patches of some images, in place.

    Args:
        projection: With as many outputs as there are values in a patch, or
            fewer: the components of the largest variance are kept then.
        images: (B, 3, H, W), normalised.
        eps: Added to every variance.
        generator: For the random turn that spreads the components.
    """
    outputs = projection.out_channels
    patches = functional.unfold(images, projection.kernel_size, stride=projection.stride)
    patches = patches.transpose(1, 2).flatten(0, 1).double()  # (B * N, 3 * ph * pw)
    mean = patches.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    variances, directions = variances[-outputs:], directions[:, -outputs:]
    kept = len(variances)
    turn = torch.linalg.qr(
        torch.randn(outputs, outputs, generator=generator, dtype=torch.double))[0][:, :kept]
    weight = turn.to(patches.device) @ torch.diag((variances + eps).rsqrt()) @ directions.T
    projection.weight.copy_(weight.reshape(projection.weight.shape))
    projection.bias.copy_(-weight @ mean)


def mimic(attention: torch.nn.Module, generator: torch.Generator):
    """Sets the projections of an attention layer as trained ones are, in place.

    `Wq Wk^T` becomes `0.7 Z + 0.7 I` and `Wv Wo` becomes `0.4 Z - 0.4 I`, Z normal with variance
    1 / embed_dims, the former as well as the rank of a head allows.

    Args:
        attention: With `qkv`, `proj`, `num_heads`, `head_dims` and
            `embed_dims`.
        generator: For Z.
    """
    dims, width = attention.embed_dims, attention.head_dims

    def factors(alpha, beta) -> tuple[Tensor, Tensor]:
        z = torch.randn(dims, dims, generator=generator) / dims**0.5
        left, values, right = torch.linalg.svd(alpha * z + beta * torch.eye(dims))
        return left * values.sqrt(), right.T * values.sqrt()

    weight = attention.qkv.weight
    for head in range(attention.num_heads):
        left, right = factors(0.7, 0.7)
        rows = slice(head * width, (head + 1) * width)
        weight[:dims][rows] = left[:, :width].T
        weight[dims : 2 * dims][rows] = right[:, :width].T
    left, right = factors(0.4, -0.4)
    weight[2 * dims :] = right.T
    attention.proj.weight.copy_(left)
