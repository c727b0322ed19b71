"""A small network beside the backbone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter
from vpt_dense.errors import UserError
from vpt_dense.parts import register

#: Smallest side of an image, in pixels, that AlexNet's layers leave something of.
_SMALLEST = 63


@register
class SideNetwork(Adapter):
    """Side-tuning (Zhang et al., ECCV 2020, https://arxiv.org/abs/1912.13503, section 3).

    As Jia et al., ECCV 2022 (https://arxiv.org/abs/2203.12119) compare with it: the side network is
    AlexNet's convolutions, g = W g' with W (C, 9216) without a bias on their 256 maps of 6x6, and
    the feature becomes sigmoid(a) f + (1 - sigmoid(a)) g, a starting at 0.

    Where the backbone puts out maps there is no g of one vector: here a 1x1 convolution without
    bias, one for each output, maps the 256 channels to those of f, and the result is resized to
    the map of f (bilinear). This dense form is ours. Images with a side under 63 pixels are
    enlarged for the side network. It sees the images as they come from the data preprocessor.

    Args:
        weights: Weights that the convolutions start from, as torchvision saves AlexNet: a path, an
            address or 'torchvision://alexnet'. None: at random.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        alpha: a, a parameter without dimensions.

    Raises:
        ValueError: If the backbone puts out neither maps nor one vector an image, takes images of
            other than three channels, or ``weights`` is no path.
    """

    needs = frozenset({'tokens', 'outputs'})

    def __init__(
        self, backbone: nn.Module, weights: str | None = None, init_cfg: dict | None = None
    ) -> None:
        super().__init__(backbone, init_cfg)
        channels = backbone.patch_layers()[0].in_channels
        if backbone.image_prompt is not None:
            channels = backbone.image_prompt.in_channels
        if channels != 3:
            raise ValueError(
                f'adapters: SideNetwork takes images of 3 channels, the backbone {channels}'
            )
        if weights is not None and not isinstance(weights, str):
            raise ValueError(
                f'adapters.weights must be a path, an address or None, found {weights!r}')
        self.weights = weights
        self.features = _alexnet_features()
        self.out = nn.ModuleList()
        self.is_map = bool(backbone.map_strides())
        widths = backbone.out_dims()
        if not widths:
            raise ValueError(
                "adapters: SideNetwork needs maps or vectors, out_type is 'raw'; set another")
        for width in widths:
            self.out.append(
                nn.Conv2d(256, width, 1, bias=False) if self.is_map
                else nn.Linear(256 * 6 * 6, width, bias=False)
            )
        self.alpha = nn.Parameter(torch.zeros(()))

    def start_from(self, backbone: nn.Module) -> None:
        """Load the weights of AlexNet, if there are any to load.

        Raises:
            UserError: If they are absent or not those of torchvision's AlexNet.
        """
        if self.weights is None:
            return
        from mmengine.runner import CheckpointLoader

        content = CheckpointLoader.load_checkpoint(self.weights, map_location='cpu')
        state = content.get('state_dict', content) if isinstance(content, dict) else {}
        for name, tensor in self.features.state_dict().items():
            found = state.get(f'features.{name}')
            if not isinstance(found, Tensor) or found.shape != tensor.shape:
                raise UserError(
                    f'adapters.weights: {self.weights} is not AlexNet as torchvision saves it, '
                    f'features.{name} {tuple(tensor.shape)} is not in it'
                )
            tensor.copy_(found)

    def after_backbone(self, outs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Adapter.after_backbone`."""
        size = [max(side, _SMALLEST) for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size, mode='bilinear', align_corners=False)
        side = self.features(images)  # (B, 256, h, w)
        if not self.is_map:
            side = F.adaptive_avg_pool2d(side, 6).flatten(1)  # (B, 9216); as it is for 224 pixels
        share = self.alpha.sigmoid()
        mixed = []
        for out, project in zip(outs, self.out, strict=True):
            own = project(side)
            if self.is_map:
                own = F.interpolate(own, out.shape[-2:], mode='bilinear', align_corners=False)
            mixed.append((share * out + (1 - share) * own).to(out.dtype))
        return tuple(mixed)


def _alexnet_features() -> nn.Sequential:
    """torchvision's, at random, without its classifier of 58 million parameters ever being made."""
    import torchvision  # half a second, and every run imports this module

    device = torch.empty(0).device
    with torch.device('meta'):
        features = torchvision.models.alexnet().features
    features.to_empty(device=device)
    for module in features:
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return features
