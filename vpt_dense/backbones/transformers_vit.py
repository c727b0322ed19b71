"""Hugging Face transformers' vision transformers, tuned in place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from vpt_dense.backbones import transformers_blocks
from vpt_dense.backbones.in_place import InPlaceBackbone, refuse
from vpt_dense.backbones.transformers_blocks import (
    CLIPBlock,
    DINOv2Block,
    DINOv3Block,
    TransformersBlock,
)
from vpt_dense.backbones.tuned_block import TunedBlock


class Family(NamedTuple):
    """What a family of models calls its parts.

    Attributes:
        layer: The class of its layers.
        block: What they become.
        patches: The convolution that makes patches.
        num_cls: Class tokens.
        pre_norm: The norm in front of the layers; empty: there is none.
    """

    layer: str
    block: type[TransformersBlock]
    patches: str = 'embeddings.patch_embeddings.projection'
    num_cls: int = 1
    pre_norm: str = ''


_DINOV2 = Family('Dinov2Layer', DINOv2Block)
_REGISTERS = _DINOV2._replace(layer='Dinov2WithRegistersLayer')
_DINOV3 = Family('DINOv3ViTLayer', DINOv3Block, 'embeddings.patch_embeddings')
_CLIP = Family(
    'CLIPEncoderLayer', CLIPBlock, 'embeddings.patch_embedding', pre_norm='pre_layrnorm')  # sic
_SIGLIP = _CLIP._replace(layer='SiglipEncoderLayer', num_cls=0, pre_norm='')

#: Class of a model -> its family.
FAMILIES = {
    'ViTModel': Family('ViTLayer', TransformersBlock),
    'Dinov2Model': _DINOV2, 'Dinov2Backbone': _DINOV2,
    'Dinov2WithRegistersModel': _REGISTERS, 'Dinov2WithRegistersBackbone': _REGISTERS,
    'DINOv3ViTModel': _DINOV3, 'DINOv3ViTBackbone': _DINOV3,
    'CLIPVisionModel': _CLIP, 'SiglipVisionModel': _SIGLIP,
    # Before transformers 5.9 these two are parts of the former.
    'CLIPVisionTransformer': _CLIP, 'SiglipVisionTransformer': _SIGLIP,
}  # fmt: skip


def _kind_of(model: type[nn.Module]) -> type[nn.Module] | None:
    """The class of :data:`FAMILIES` that a class of model is; None: none of them."""
    return next(
        (kind for kind in model.__mro__
         if kind.__name__ in FAMILIES and kind.__module__.startswith('transformers.')), None)


def _path_of_layers(model: nn.Module, layer: str) -> str | None:
    """Name of the list in a model that holds layers of a class; None: there is none."""
    return next(
        (name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
         and any(type(each).__name__ == layer for each in module)), None)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


class TransformersBackbone(InPlaceBackbone):
    """A model of one of transformers' classes in :data:`FAMILIES`, under its own names.

    While the base is frozen the places of a DINOv3 do not vary in training, as the configs that
    transformers releases have it (``pos_embed_rescale``); ``model.rope_embeddings.train()`` after
    ``model.train()`` lets them.

    Attributes:
        path: Name of the list of its layers.
    """

    path: str

    stem = ('embeddings', 'rope_embeddings', 'pre_layrnorm')
    output_norm = r'(post_)?(layer)?norm\.'
    interpolate_mode = 'bicubic'

    def forward(self, pixel_values: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; prompts are never among the tokens that it returns.

        Weights of attention have columns for prompts, and rows where these flow on.
        """
        function = self.original.forward.__get__(self)
        if pixel_values is None:  # transformers says what it needs
            return function(*args, **kwargs)
        return self.run(function, pixel_values, *args, **kwargs)

    @staticmethod
    def image_size(model: nn.Module) -> dict[str, Any]:
        """See :meth:`.InPlaceBackbone.image_size`."""
        return dict(img_size=_pair(model.config.image_size), in_channels=model.config.num_channels)

    @staticmethod
    def check(model: nn.Module) -> None:
        """See :meth:`.InPlaceBackbone.check`."""
        kind = _kind_of(type(model))
        if kind is None or type(model).forward is not kind.forward:
            refuse(model, f"it is none of transformers' {', '.join(FAMILIES)}")
        layer = FAMILIES[kind.__name__].layer
        path = _path_of_layers(model, layer)
        if path is None or 'embeddings' not in dict(model.named_children()):
            refuse(model, f'it has no embeddings and list of {layer} of its own')
        for i, block in enumerate(model.get_submodule(path)):
            if type(block).__name__ != layer:
                refuse(model, f'{path}.{i} is no {layer} but {type(block).__name__}')

    def tune(
        self, prompt: Any, image_prompt: Any, adapters: Any, trainable: Any,
        prompts_as: str = 'keys_values', memory: str = 'default', with_cp: bool = False,
    ) -> None:
        """See :meth:`.TokenTuning.tune`; checkpointing that was switched on before stays on."""
        self.path = _path_of_layers(self, self.family.layer)
        layers = list(self.get_submodule(self.path))
        with_cp = with_cp or any(layer.gradient_checkpointing for layer in layers)
        super().tune(prompt, image_prompt, adapters, trainable, prompts_as, memory, with_cp)

    def adopt_block(self, block: nn.Module) -> None:
        """See :meth:`.TokenTuning.adopt_block`."""
        transformers_blocks.adopt_block(self.family.block, block)

    def give_back(self) -> nn.Module:
        """See :meth:`.InPlaceBackbone.give_back`."""
        # transformers' hooks that record outputs, on layers too, stay: they are put on once.
        recorded = getattr(self, '_output_capturing_hooks_installed', False)
        model = super().give_back()
        if recorded:
            model._output_capturing_hooks_installed = True
        return model

    @property
    def family(self) -> Family:
        """What its parts are called."""
        return FAMILIES[_kind_of(type(self)).__name__]

    def named_blocks(self) -> list[tuple[str, TunedBlock]]:
        """See :meth:`.TokenTuning.named_blocks`."""
        blocks = self.get_submodule(self.path)
        return [(f'{self.path}.{name}', block) for name, block in blocks.named_children()]

    def patch_layers(self) -> list[nn.Module]:
        """See :meth:`.TunedBackbone.patch_layers`."""
        return [self.get_submodule(self.family.patches)]

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """See :meth:`.InPlaceBackbone.patch_grid`."""
        (height, width), (rows, columns) = images.shape[-2:], self.patch_size_pixels()
        return height // rows, width // columns

    def embed_patches(self, images: Tensor) -> Tensor:
        """See :meth:`.TokenTuning.embed_patches`."""
        return self.patch_layers()[0](images).flatten(2).transpose(1, 2)

    @property
    def num_extra_tokens(self) -> int:
        """Class tokens."""
        return self.family.num_cls

    @property
    def num_first(self) -> int:
        """Class and register tokens."""
        return self.num_extra_tokens + getattr(self.config, 'num_register_tokens', 0)

    @property
    def patch_resolution(self) -> tuple[int, int]:
        """Rows and columns of patches of the images that it was made for."""
        height, width = _pair(self.config.image_size)
        rows, columns = self.patch_size_pixels()
        return height // rows, width // columns

    @property
    def embed_dims(self) -> int:
        """Width C."""
        return self.config.hidden_size

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return self.config.num_hidden_layers

    @property
    def pre_norm(self) -> nn.Module:
        """The norm in front of the blocks."""
        name = self.family.pre_norm
        return getattr(self, name) if name else nn.Identity()

    def describe(self) -> str:
        """See :meth:`.FrozenBase.describe`."""
        rows, columns = self.patch_resolution
        return f'{type(self).__name__} of width {self.embed_dims} on {rows}x{columns} patches'

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See :meth:`.TunedBackbone.get_layer_depth`."""
        number = self.num_layers + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix):
            return number - 1, number
        start = f'{self.path}.'
        if name.startswith(start):
            return int(name.removeprefix(start).split('.')[0]) + 1, number
        return (0 if name.split('.')[0] in self.stem else number - 1), number
