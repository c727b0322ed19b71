"""ConvNeXt with a prompt in image space and a choice of what trains."""

from collections.abc import Sequence

from mmpretrain.models import backbones
from torch import Tensor

from vpt_dense.argument_checks import check_stages
from vpt_dense.backbones.convolutional import ConvolutionalBackbone
from vpt_dense.registry import MODELS


@MODELS.register_module()
class ConvNeXt(ConvolutionalBackbone, backbones.ConvNeXt):
    """mmpretrain's ConvNeXt, bit for bit, with an image prompt and a choice of what trains.

    Args:
        arch: As in mmpretrain: 'tiny', 'base', ... or a dict with depths and channels.
        img_size: Training image size in pixels, a number or (height, width), which an image
            prompt is made for. Other sizes work.
        in_channels: Channels of the images, those of an image prompt not counted.
        out_indices: Stages that are returned, negative ones counted from the end, each with a
            norm of its own; at strides of 4 to 32 pixels.
        gap_before_final_norm: Return the mean over each map, (B, C), as classifiers read it; False:
            maps, for segmentation.
        prompt: None: there are no tokens to prompt. Here to be refused by name.
        image_prompt: Config of a :class:`vpt_dense.image_prompts.ImagePrompt`, in front of the
            stem.
        adapters: None or empty: those of this package change transformer blocks.
        trainable: Regular expressions, searched in the names of this backbone's parameters; those
            that match train, all others are frozen here and now. Default: the image prompt if
            there is one, else everything. While anything but the image prompt is frozen, the whole
            network stays in eval mode (stochastic depth).
        init_cfg: ``dict(type='Pretrained', checkpoint=ADDRESS)`` loads pretrained weights of any
            known format of a ConvNeXt; a tensor that is missing, left over or of another shape is
            an error (see :func:`vpt_dense.weights.compute`). The published weights hold the last
            norm alone: with several ``out_indices``, name the others in
            ``init_cfg.allow_missing`` and in ``trainable``. None: random, as mmpretrain's.
        **kwargs: As in :class:`mmpretrain.ConvNeXt`.

    Raises:
        ValueError: If a part does not fit, ``frozen_stages`` is set too, or a pattern of
            ``trainable`` matches no parameter; the message names it.
    """

    weights_family = 'convnext'

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        gap_before_final_norm: bool = True,
        prompt: dict | None = None,
        image_prompt: dict | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        self.refuse_frozen_stages(kwargs, 1, r"trainable=[r'^stages\.3\.', r'^norm3\.']")
        indices = [out_indices] if isinstance(out_indices, int) else out_indices
        stages = len(arch['depths']) if isinstance(arch, dict) and 'depths' in arch else 4
        check_stages(indices, stages, from_end=True)
        front, in_channels = self.build_front(prompt, image_prompt, img_size, in_channels)
        if init_cfg is not None:  # else the parent's own
            kwargs['init_cfg'] = init_cfg
        super().__init__(
            arch=arch,
            in_channels=in_channels,
            out_indices=[index % stages for index in indices],  # the parent counts from the fourth
            gap_before_final_norm=gap_before_final_norm,
            **kwargs,
        )
        self.tune(None, front, adapters, trainable)

    @property
    def embed_dims(self) -> int:
        """Channels of the last stage."""
        return self.channels[-1]

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`.TunedBackbone.map_strides`."""
        if self.gap_before_final_norm:
            return []
        rows, columns = self.downsample_layers[0][0].stride
        return [(rows * 2**i, columns * 2**i) for i in self.out_indices]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Turn images, (B, in_channels, H, W), into the outputs of ``out_indices``.

        Returns:
            (B, C), or maps (B, C, h, w) without ``gap_before_final_norm``.
        """
        return self.crop_border(super().forward(self.prompted(x)))
