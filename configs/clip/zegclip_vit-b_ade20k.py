# ZegCLIP on CLIP ViT-B/16, ADE20K in crops of 512x512: a recipe,
# meant for --method deep.
_base_ = [
    '../_base_/models/zegclip_vit-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/zegclip.py',
]
