# Depth by a linear head on the patch tokens alone, see linear-depth_vit-l.py: any method fits.
_base_ = './linear-depth_vit-l.py'
model = dict(backbone=dict(out_type='featmap'), depth_head=dict(cls_token=False))
