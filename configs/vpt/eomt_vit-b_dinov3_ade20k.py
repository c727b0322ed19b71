# EoMT on DINOv3 ViT-B/16, ADE20K in crops of 512x512; queries pass the last three blocks. The
# authors tune the whole encoder (--method full).
_base_ = [
    '../_base_/models/eomt_vit-l.py',
    '../_base_/backbones/dinov3_vit-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/40k_cosine.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/eomt.py',
]
model = dict(decode_head=dict(num_blocks=3))
