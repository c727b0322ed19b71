# Segmenter on ViT-L/16, see segmenter_vit-b.py. mmseg's has crops of 640x640, these are of 512x512
# as everywhere else here.
_base_ = './segmenter_vit-b.py'
model = dict(
    backbone=dict(
        arch='large',
        out_indices=[23],
        init_cfg=dict(checkpoint='timm://vit_large_patch16_384.augreg_in21k_ft_in1k'),
    ),
    decode_head=dict(in_channels=1024, channels=1024, num_heads=16, embed_dims=1024),
)
