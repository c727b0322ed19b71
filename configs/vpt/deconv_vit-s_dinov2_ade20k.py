# ViT-Split's head, DINOv2 ViT-S/14, ADE20K in crops of 518x518.
_base_ = [
    '../_base_/models/deconv_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/ade20k_518.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/vit-split.py',
]
model = dict(
    # Test images are padded to a multiple of the patch.
    data_preprocessor=dict(size=(518, 518), test_cfg=dict(size_divisor=14)),
    backbone=dict(img_size=(518, 518)),
    test_cfg=dict(crop_size=(518, 518), stride=(345, 345)),
)
