# 50 epochs, cosine behind a first epoch at a small constant rate: CoOp's schedule for one image of
# each class (https://arxiv.org/abs/2109.01134; 100 epochs for 2 and 4, 200 for 8 and 16:
# epochs=200). Its rates are for 32 images a step, whatever the batch.
_base_ = './cls_100e.py'
train_cfg = dict(max_epochs=50, val_interval=10)
param_scheduler = [
    dict(type='ConstantLR', factor=0.005, begin=0, end=1, by_epoch=True),
    dict(type='CosineAnnealingLR', T_max=49, eta_min=0, begin=1, end=50, by_epoch=True),
]
auto_scale_lr = dict(enable=False)
