"""timm's vision transformers, tuned in place."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpt_dense.backbones import timm_blocks
from vpt_dense.backbones.in_place import InPlaceBackbone, adopt, refuse
from vpt_dense.backbones.timm_blocks import BLOCKS, known, run_by
from vpt_dense.backbones.tuned_block import TunedBlock
from vpt_dense.errors import UserError, suggest

#: timm's modules whose models are of the classes that can be tuned.
_MODULES = ('vision_transformer', 'eva', 'deit', 'vision_transformer_hybrid', 'vitamin')


class TimmBackbone(InPlaceBackbone):
    """A model of timm's classes ``VisionTransformer`` or ``Eva``, under timm's own names."""

    weights_family = 'timm'
    stem = ('cls_token', 'reg_token', 'dist_token', 'pos_embed', 'patch_embed', 'norm_pre', 'rope')
    output_norm = r'(norm|fc_norm)\.'
    interpolate_mode = 'bicubic'

    forward = run_by('forward')
    forward_features = run_by('forward_features')
    forward_intermediates = run_by('forward_intermediates')

    @staticmethod
    def image_size(model: nn.Module) -> dict[str, Any]:
        """See :meth:`.InPlaceBackbone.image_size`."""
        convolution = next(m for m in model.patch_embed.modules() if isinstance(m, nn.Conv2d))
        return dict(img_size=tuple(model.patch_embed.img_size), in_channels=convolution.in_channels)

    @staticmethod
    def check(model: nn.Module) -> None:
        """See :meth:`.InPlaceBackbone.check`."""
        if known(model, (VisionTransformer, Eva)) is None:
            other = type(model).__name__ in ('SwinTransformer', 'ConvNeXt', 'ResNet')
            name = type(model).__name__
            way = f'; in configs vpt_dense.{name} takes its weights' if other else ''
            refuse(model, f'it is neither a VisionTransformer nor an Eva of timm{way}')
        for i, block in enumerate(model.blocks):
            if known(block, BLOCKS) is None:
                refuse(model, f'blocks.{i} is a {type(block).__name__}, which is not known')
        drop = getattr(model, 'patch_drop', None)
        if drop is not None and not isinstance(drop, nn.Identity):
            refuse(model, 'patch_drop_rate leaves out patches, and their places would be unknown')

    def tune(self, *args, **kwargs) -> None:
        """See :meth:`.TokenTuning.tune`; what it offers follows from its blocks."""
        offers = set(type(self).offers)
        blocks = list(self.blocks)
        if any(BLOCKS[known(block, BLOCKS)] is timm_blocks.WholeBlock for block in blocks):
            offers -= {'parts', 'keys and values'}
        elif any(known(block.attn, timm_blocks.ATTENTIONS) is None for block in blocks):
            offers -= {'keys and values', 'parts'}
        elif not hasattr(blocks[0].mlp, 'fc2'):
            offers -= {'parts'}
        if 'keys and values' not in offers:
            offers -= {'hidden tokens'}
        if hasattr(self.patch_embed, 'backbone'):  # a convolutional network makes the patches
            offers -= {'patches'}
        rope = getattr(self, 'rope', None)
        if isinstance(rope, timm_blocks.RotaryEmbeddingDinoV3):
            offers -= {'open sizes'}  # it computes with numbers of rows and columns
        self.offers = frozenset(offers)
        if type(rope) in timm_blocks.ROPES:
            adopt(timm_blocks.PlacesOnce, rope)
        super().tune(*args, **kwargs)

    def adopt_block(self, block: nn.Module) -> None:
        """See :meth:`.TokenTuning.adopt_block`."""
        timm_blocks.adopt_block(block)

    def named_blocks(self) -> list[tuple[str, TunedBlock]]:
        """See :meth:`.TokenTuning.named_blocks`."""
        return [(f'blocks.{name}', block) for name, block in self.blocks.named_children()]

    def patch_layers(self) -> list[nn.Module]:
        """See :meth:`.TunedBackbone.patch_layers`."""
        embed = self.patch_embed
        layers = (embed.proj, getattr(embed, 'norm', None))
        return [m for m in layers if m is not None and not isinstance(m, nn.Identity)]

    def patch_size_pixels(self) -> tuple[int, int]:
        """See :meth:`.TokenTuning.patch_size_pixels`."""
        return tuple(self.patch_embed.feat_ratio(as_scalar=False))

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """See :meth:`.InPlaceBackbone.patch_grid`.

        Raises:
            UserError: If the patches do not divide the images.
        """
        size, patch = tuple(images.shape[-2:]), self.patch_size_pixels()
        if not self.patch_embed.dynamic_img_pad and any(
            side % each for side, each in zip(size, patch, strict=True)
        ):
            raise UserError(
                f'images of {size[0]}x{size[1]} pixels: patches of {patch[0]}x{patch[1]} do not '
                'divide them; resize or pad them, or build the model with dynamic_img_pad=True')
        return tuple(self.patch_embed.dynamic_feat_size(tuple(images.shape[-2:])))

    def embed_patches(self, images: Tensor) -> Tensor:
        """See :meth:`.TokenTuning.embed_patches`."""
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        return self.patch_embed.norm(x)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.image_size(self)['in_channels']

    @property
    def num_first(self) -> int:
        """Class, distillation and register tokens."""
        return self.num_prefix_tokens

    @property
    def num_extra_tokens(self) -> int:
        """Of these, the ones that are no registers."""
        registers = 0 if self.reg_token is None else self.reg_token.shape[1]
        return self.num_prefix_tokens - registers

    @property
    def patch_resolution(self) -> tuple[int, int]:
        """Rows and columns of patches of the images that it was made for."""
        return tuple(self.patch_embed.grid_size)

    @property
    def embed_dims(self) -> int:
        """Width C."""
        return self.embed_dim

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def pre_norm(self) -> nn.Module:
        """The norm in front of the blocks."""
        return self.norm_pre

    def describe(self) -> str:
        """See :meth:`.FrozenBase.describe`."""
        rows, columns = self.patch_resolution
        name = (getattr(self, 'pretrained_cfg', None) or {}).get('architecture', 'a model of timm')
        return f'{name} of width {self.embed_dim} on {rows}x{columns} patches'

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See :meth:`.TunedBackbone.get_layer_depth`."""
        number = len(self.blocks) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix):
            return number - 1, number
        parts = name.split('.')
        if parts[0] == 'blocks':
            return int(parts[1]) + 1, number
        return (0 if parts[0] in self.stem else number - 1), number

    def train(self, mode: bool = True) -> 'TimmBackbone':
        """See :meth:`.TunedBackbone.train`; places are augmented while training if asked for."""
        super().train(mode)
        rope = getattr(self, 'rope', None)
        if rope is not None:
            rope.train(mode)
        return self


def names(pattern: str = '', pretrained: bool = False) -> list[str]:
    """Names of timm's models that can be tuned.

    Args:
        pattern: As in ``timm.list_models``, ``'*dinov3*'``; a word alone is looked for anywhere.
        pretrained: Only names with pretrained weights, with their tags.
    """
    pattern = pattern if not pattern or '*' in pattern else f'*{pattern}*'
    found: set[str] = set()
    for module in _MODULES:
        found.update(timm.list_models(pattern, module=module, pretrained=pretrained))
    return sorted(found)


def create(
    name: str,
    img_size: int | Sequence[int] | None = None,
    in_chans: int = 3,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Timm's model of a name, at random, without a classifier, for images of any size.

    Raises:
        UserError: If there is none, it cannot be tuned, or does not take an option.
    """
    base = name.partition('.')[0]
    if not timm.is_model(base):
        raise UserError(f'backbone {name!r} is not known{suggest(base, timm.list_models())}')
    arguments = dict(options or {}, in_chans=in_chans)
    if img_size is not None:
        arguments['img_size'] = img_size if isinstance(img_size, int) else tuple(img_size)
    if base in names():
        arguments.setdefault('dynamic_img_size', True)
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f'backbone {name}: timm refuses {arguments}: {str(error).partition(chr(10))[0]}'
        ) from error
    TimmBackbone.check(model)
    size, patch = model.patch_embed.img_size, model.patch_embed.feat_ratio(as_scalar=False)
    if img_size is not None and any(side % each for side, each in zip(size, patch, strict=True)):
        raise UserError(
            f'backbone {name}: img_size {tuple(size)} is no multiple of its patches {tuple(patch)}')
    return model
