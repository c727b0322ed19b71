# As depth_38k.py; the best checkpoint is that of the smallest mean angle.
_base_ = './depth_38k.py'
default_hooks = dict(checkpoint=dict(save_best='mean_angle'))
