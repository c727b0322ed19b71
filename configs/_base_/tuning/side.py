# Side-tuning (https://arxiv.org/abs/1912.13503): AlexNet's convolutions beside the frozen backbone.
# weights='torchvision://alexnet' (or a path) starts them pretrained.
_base_ = './_adamw.py'
tuning = dict(
    adapters=[dict(type='vpt_dense.SideNetwork', weights=None)],
    trainable=[r'^adapters\.'],
)
