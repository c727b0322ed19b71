"""Residual networks."""

from vpt_dense.weights.layouts.base import Layout

#: torchvision, timm and OpenMMLab name a residual network alike, but for its classifier.
RESNET = Layout(
    name='ResNet',
    signature='layer*.*.conv1.weight',
    ignored=(r'^fc\.', r'^head\.', r'\.num_batches_tracked$'),
    family='resnet',
)

LAYOUTS = (RESNET,)
