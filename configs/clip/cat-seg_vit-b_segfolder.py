# A head after CAT-Seg on CLIP ViT-B/16, a folder of images and masks in crops of 384x384: a recipe,
# meant for --method deep.
_base_ = [
    '../_base_/models/cat-seg_vit-b.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/zegclip.py',
]
img_size = 384
