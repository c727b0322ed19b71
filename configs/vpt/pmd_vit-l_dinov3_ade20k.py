# PMT's decoder, DINOv3 ViT-L/16, ADE20K in crops of 512x512. The authors' run is 16 epochs of 16
# images: 20,200 iterations, 6,000 of warm-up; they publish 58.5 mIoU with a frozen encoder.
_base_ = [
    '../_base_/models/pmd_vit-l.py',
    '../_base_/backbones/dinov3_vit-l.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/40k_cosine.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/pmd.py',
]
model = dict(backbone=dict(norm_outputs=False))
