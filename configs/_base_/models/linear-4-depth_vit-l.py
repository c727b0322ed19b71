# Depth by a linear head on the concatenated tokens of four blocks of ViT-L, evenly spread, see
# linear-depth_vit-l.py.
_base_ = './linear-depth_vit-l.py'
model = dict(
    backbone=dict(out_indices=[5, 11, 17, 23]),
    depth_head=dict(in_channels=[1024, 1024, 1024, 1024], in_index=[0, 1, 2, 3]),
)
