# A linear head on the concatenated patch tokens of the last four blocks of ViT-L, see
# linear_vit-l.py.
_base_ = './linear_vit-l.py'
model = dict(
    backbone=dict(out_indices=[-4, -3, -2, -1]),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], in_index=[0, 1, 2, 3]),
)
