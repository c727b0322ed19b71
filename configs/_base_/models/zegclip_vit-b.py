# ZegCLIP on CLIP ViT-B/16 (https://arxiv.org/abs/2212.03588): masks of classes that are known by
# their names. OpenAI's weights, as open_clip has them.
model = dict(
    type='vpt_dense.CLIPSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type='vpt_dense.CLIPVisionTransformer',
        arch='base',
        img_size=(512, 512),
        patch_size=16,
        project_dims=512,
        out_type='embeddings',
        out_indices=[11],
        init_cfg=dict(
            type='Pretrained',
            checkpoint='hf://timm/vit_base_patch16_clip_224.openai/open_clip_model.safetensors',
        ),
    ),
    decode_head=dict(
        type='vpt_dense.ZegCLIPHead',
        in_channels=512,
        num_classes=150,
        classes=None,  # from the data set
        unseen=[],  # names of the classes that training leaves out
        text=dict(
            type='vpt_dense.CLIPTextTransformer',
            arch='base',
            project_dims=512,
            tokenizer='open_clip',
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(426, 426)),
)
