# A head after CAT-Seg (https://arxiv.org/abs/2303.11797) on CLIP ViT-B/16: the cosines of patches
# and names of classes, aggregated. Crops of 384 pixels and 24x24 patches, as the authors have it.
_base_ = './zegclip_vit-b.py'
model = dict(
    data_preprocessor=dict(size=(384, 384)),
    backbone=dict(img_size=(384, 384), out_indices=[3, 7, 11], dense_from='values'),
    decode_head=dict(
        _delete_=True,
        type='vpt_dense.CostHead',
        in_channels=512,
        guide_channels=768,
        num_classes=150,
        classes=None,  # from the data set
        text=dict(
            type='vpt_dense.CLIPTextTransformer',
            arch='base',
            project_dims=512,
            tokenizer='open_clip',
        ),
    ),
    test_cfg=dict(crop_size=(384, 384), stride=(256, 256)),
)
