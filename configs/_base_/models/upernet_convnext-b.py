# UperNet on ConvNeXt-B, as in mmseg's ConvNeXt for ADE20K: its maps of strides 4, 8, 16 and 32,
# each through a norm of its own, are the pyramid. Heads: see upernet_vit-b.py.
_base_ = './upernet_vit-b.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='vpt_dense.ConvNeXt',
        arch='base',
        img_size=(512, 512),
        out_indices=[0, 1, 2, 3],
        gap_before_final_norm=False,
        # ConvNeXt-B on ImageNet-22k, supervised: the authors'. Save as the name below:
        # https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_224.pth
        init_cfg=dict(
            type='Pretrained',
            checkpoint='pretrain/convnext_base_22k_224.pth',
            # Those of the first three stages are new: the leaf lists them in `trainable`.
            allow_missing=[r'^norm[0-2]\.'],
        ),
    ),
    neck=None,
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
