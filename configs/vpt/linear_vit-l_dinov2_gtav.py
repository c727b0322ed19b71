# Domain generalisation: linear head, DINOv2 ViT-L/14, trained on GTAV in crops of 518x518,
# validated on Cityscapes, tested on Cityscapes, BDD100K and the four weathers of ACDC.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-l.py',
    '../_base_/datasets/driving_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
img_size = 518
train_dataloader = dict(dataset=dict(name='gtav', data_root='data/gtav', split='all'))
test_sets = dict(
    cityscapes=dict(),
    bdd100k=dict(name='bdd100k', data_root='data/bdd100k'),
    acdc=dict(name='acdc', data_root='data/acdc'),
)
