# CLIP ViT-B/16 with both towers (https://arxiv.org/abs/2103.00020): classes are known by their
# names, which come from the data set. OpenAI's weights, as open_clip has them; any file of a whole
# CLIP of open_clip, OpenAI or transformers does (most of LAION's: model.backbone.quick_gelu=False).
model = dict(
    type='vpt_dense.CLIPClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
        to_rgb=True,
    ),
    backbone=dict(
        type='vpt_dense.CLIPVisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        project_dims=512,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='hf://timm/vit_base_patch16_clip_224.openai/open_clip_model.safetensors',
        ),
    ),
    head=dict(
        type='vpt_dense.TextHead',
        num_classes=1000,  # set from the classes of the data, and so are their names
        classes=None,
        text=dict(
            type='vpt_dense.CLIPTextTransformer',
            arch='base',
            project_dims=512,
            tokenizer='open_clip',
        ),
    ),
)
