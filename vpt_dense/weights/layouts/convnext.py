"""ConvNeXt: OpenMMLab's, the authors', DINOv3's, transformers' and timm's."""

from vpt_dense.weights.layouts.base import Layout

#: https://github.com/facebookresearch/ConvNeXt; timm before 0.6 had these names too.
CONVNEXT = Layout(
    name='ConvNeXt',
    signature='stages.*.*.dwconv.weight',
    rules=(
        ('stages.*.*.dwconv.', 'stages.*.*.depthwise_conv.'),
        ('stages.*.*.pwconv1.', 'stages.*.*.pointwise_conv1.'),
        ('stages.*.*.pwconv2.', 'stages.*.*.pointwise_conv2.'),
        ('norm.', 'norm3.'),
    ),
    ignored=(r'^head\.',),
    family='convnext',
)

#: https://github.com/facebookresearch/dinov3: the last norm is there twice, under two names.
DINOV3_CONVNEXT = CONVNEXT._replace(
    name='DINOv3 ConvNeXt',
    marks=(r'(^|\.)norms\.3\.weight$', r'(^|\.)norm\.weight$'),
    ignored=(r'^norms\.3\.', r'^mask_token$', r'^projectors\.', *CONVNEXT.ignored),
)

HF_DINOV3_CONVNEXT = Layout(
    name='Hugging Face DINOv3 ConvNeXt',
    signature='stages.*.layers.*.depthwise_conv.weight',
    rules=(
        ('stages.*.downsample_layers.*.', 'downsample_layers.*.*.'),
        ('stages.*.layers.*.layer_norm.', 'stages.*.*.norm.'),
        ('stages.*.layers.*.', 'stages.*.*.'),
        ('layer_norm.', 'norm3.'),
    ),
    family='convnext',
)

TIMM_CONVNEXT = Layout(
    name='timm ConvNeXt',
    signature='stages.*.blocks.*.conv_dw.weight',
    rules=(
        ('stem.', 'downsample_layers.0.'),
        ('stages.*.downsample.', 'downsample_layers.*.'),
        ('stages.*.blocks.*.conv_dw.', 'stages.*.*.depthwise_conv.'),
        ('stages.*.blocks.*.mlp.fc1.', 'stages.*.*.pointwise_conv1.'),
        ('stages.*.blocks.*.mlp.fc2.', 'stages.*.*.pointwise_conv2.'),
        ('stages.*.blocks.*.mlp.grn.weight', 'stages.*.*.grn.gamma'),
        ('stages.*.blocks.*.mlp.grn.bias', 'stages.*.*.grn.beta'),
        ('stages.*.blocks.*.', 'stages.*.*.'),
        ('head.norm.', 'norm3.'),
    ),
    ignored=(r'^head\.(fc|pre_logits)\.',),
    family='convnext',
)

MM_CONVNEXT = Layout(
    name='OpenMMLab ConvNeXt',
    signature='stages.*.*.depthwise_conv.weight',
    ignored=(r'^head\.',),
    family='convnext',
)

LAYOUTS = (DINOV3_CONVNEXT, CONVNEXT, HF_DINOV3_CONVNEXT, TIMM_CONVNEXT, MM_CONVNEXT)
