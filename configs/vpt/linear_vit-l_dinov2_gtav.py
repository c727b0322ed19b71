# Domain generalisation: linear head, DINOv2 ViT-L/14, trained on GTAV in crops of 518x518,
# validated on Cityscapes, tested on Cityscapes, BDD100K and the four weathers of ACDC.
_base_ = './linear_vit-l_dinov2_cityscapes.py'
train_dataloader = dict(dataset=dict(name='gtav', data_root='data/gtav', split='all'))
test_sets = dict(
    cityscapes=dict(),
    bdd100k=dict(name='bdd100k', data_root='data/bdd100k'),
    acdc=dict(name='acdc', data_root='data/acdc'),
)
