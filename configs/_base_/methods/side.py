# Side-tuning (https://arxiv.org/abs/1912.13503): AlexNet's convolutions beside the frozen backbone.
# weights='torchvision://alexnet' (or a path) starts them pretrained.
method = dict(
    adapters=[dict(type='vpt_dense.SideNetwork', weights=None)],
    trainable=[r'^adapters\.'],
)
optim_group = 'blocks'
