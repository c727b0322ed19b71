# Linear head, DINOv2 ViT-B/14, vessels of the retina (DRIVE); or disc and cup (REFUGE):
#     dataset = dict(name='refuge', data_root='data/refuge')
# Dice by image beside mIoU. pip install 'vpt-dense[medical]'.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/retina_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
img_size = 518
