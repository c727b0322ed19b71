"""ConvNeXt: OpenMMLab's, the authors' and timm's."""

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

LAYOUTS = (CONVNEXT, TIMM_CONVNEXT, MM_CONVNEXT)
