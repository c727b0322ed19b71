# ViT-B/16, a folder of images: MLP-3 (https://arxiv.org/abs/2203.12119), a frozen backbone and a
# head of three layers. mmpretrain's head puts the batch norm before the ReLU, the paper's code
# behind it.
_base_ = ['./vit-b_imagefolder.py', '../_base_/methods/linear.py']
kaiming = dict(type='Kaiming', layer='Linear', mode='fan_out', nonlinearity='relu')
model = dict(
    backbone=_base_.method,
    head=dict(
        type='StackedLinearClsHead',
        mid_channels=[768, 768],
        dropout_rate=0.1,
        norm_cfg=dict(type='BN1d'),
        # -log(99) for the last layer alone: every class starts at a probability of 0.01.
        init_cfg=dict(
            bias=0, override=dict(name='fc', bias=-4.59511985, **kaiming), **kaiming
        ),
    ),
)
optim_wrapper = _base_.optim[_base_.optim_group]
