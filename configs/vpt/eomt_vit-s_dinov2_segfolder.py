# EoMT on DINOv2 ViT-S/14, a folder of images and masks in crops of 518x518; queries pass the last
# three blocks.
_base_ = [
    '../_base_/models/eomt_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/eomt.py',
]
img_size = 518
model = dict(decode_head=dict(num_blocks=3, num_upscalings=1))
