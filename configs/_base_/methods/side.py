# Side-tuning (https://arxiv.org/abs/1912.13503): AlexNet's convolutions beside the frozen backbone.
# weights='torchvision://alexnet' (or a path) starts them pretrained.
# Trainable: 2_469_696 + (9216 if vector else 256) * sum(outputs) + 1
method = dict(
    adapters=[dict(type='vpt_dense.SideNetwork', weights=None)],
    trainable=[r'^adapters\.'],
)
optim_group = 'blocks'
