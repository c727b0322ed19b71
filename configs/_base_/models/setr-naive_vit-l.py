# SETR-Naive (https://arxiv.org/abs/2012.15840) on ViT-L/16, as in mmseg: 1x1 convolutions and one
# bilinear upsampling instead of SETR-PUP's progressive one.
_base_ = './setr-pup_vit-l.py'
model = dict(
    decode_head=dict(num_convs=1, up_scale=4, kernel_size=1),
    auxiliary_head=[
        dict(**{**head, 'kernel_size': 1}) for head in _base_.model.auxiliary_head
    ],
)
