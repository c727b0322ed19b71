# Linear head, TIPSv2 ViT-B/14, ADE20K in crops of 518x518.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/tipsv2_vit-b.py',
    '../_base_/datasets/ade20k_518.py',
    '../_base_/schedules/40k_cosine.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/linear_dinov3.py',
]
model = dict(
    # Test images are padded to a multiple of the patch.
    data_preprocessor=dict(size=(518, 518), test_cfg=dict(size_divisor=14)),
    backbone=dict(img_size=(518, 518), norm_outputs=False),
    decode_head=dict(dropout_ratio=0.1),
    test_cfg=dict(crop_size=(518, 518), stride=(345, 345)),
)
