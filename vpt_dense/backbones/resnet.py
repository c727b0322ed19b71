"""The residual network with a prompt in image space and a choice of what trains."""

from collections.abc import Sequence

from mmpretrain.models import backbones
from torch import Tensor

from vpt_dense.argument_checks import check_choice, check_stages
from vpt_dense.backbones.convolutional import ConvolutionalBackbone
from vpt_dense.registry import MODELS


@MODELS.register_module()
class ResNet(ConvolutionalBackbone, backbones.ResNet):
    """mmpretrain's ResNet, bit for bit, with an image prompt and a choice of what trains.

    While anything but the image prompt is frozen the whole network stays in eval mode: its batch
    norms use the statistics that they were loaded with.

    Args:
        depth: 18, 34, 50, 101 or 152.
        img_size: Training image size in pixels, a number or (height, width), which an image
            prompt is made for. Other sizes work.
        in_channels: Channels of the images, those of an image prompt not counted.
        out_indices: Stages whose maps are returned, 0 to 3, at strides of 4 to 32 pixels.
        prompt: None: there are no tokens to prompt. Here to be refused by name.
        image_prompt: Config of a :class:`vpt_dense.image_prompts.ImagePrompt`, in front of the
            stem.
        adapters: None or empty: those of this package change transformer blocks.
        trainable: Regular expressions, searched in the names of this backbone's parameters; those
            that match train, all others are frozen here and now. Default: the image prompt if
            there is one, else everything.
        init_cfg: ``dict(type='Pretrained', checkpoint=ADDRESS)`` loads pretrained weights of any
            known format of a ResNet; a tensor that is missing, left over or of another shape is an
            error (see :func:`vpt_dense.weights.compute`). None: random, as mmpretrain's.
        **kwargs: As in :class:`mmpretrain.ResNet`.

    Raises:
        ValueError: If a part does not fit, ``frozen_stages`` is set too, or a pattern of
            ``trainable`` matches no parameter; the message names it.
    """

    weights_family = 'resnet'

    def __init__(
        self,
        depth: int = 50,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        out_indices: Sequence[int] = (3,),
        prompt: dict | None = None,
        image_prompt: dict | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        self.refuse_frozen_stages(kwargs, 0, r"trainable=[r'^layer4\.']")
        check_choice(depth, 'depth', self.arch_settings)
        check_stages(out_indices, kwargs.get('num_stages', 4))
        front, in_channels = self.build_front(prompt, image_prompt, img_size, in_channels)
        if init_cfg is not None:  # else the parent's own
            kwargs['init_cfg'] = init_cfg
        super().__init__(depth=depth, in_channels=in_channels, out_indices=out_indices, **kwargs)
        self.tune(None, front, adapters, trainable)

    @property
    def embed_dims(self) -> int:
        """Channels of the last stage."""
        return self.feat_dim

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return self.stage_blocks

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`.TunedBackbone.map_strides`."""
        strides, stride = [], 4  # the stem's
        for own in self.strides:
            strides.append(stride := stride * own)
        return [(strides[i], strides[i]) for i in self.out_indices]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Turn images, (B, in_channels, H, W), into maps, (B, C, h, w), of ``out_indices``."""
        return self.crop_border(super().forward(self.prompted(x)))
