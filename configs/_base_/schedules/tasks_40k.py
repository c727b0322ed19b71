# As 40k.py, for several tasks: the best checkpoint is that of the best segmentation.
_base_ = './40k.py'
default_hooks = dict(checkpoint=dict(save_best='seg/mIoU', rule='greater'))
