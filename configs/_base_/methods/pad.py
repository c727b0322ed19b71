# A learnt border around the image ("pad" of VPT, https://arxiv.org/abs/2203.12119). Maps show the
# image without it, so the width is a multiple of their strides: 16 pixels fit a ViT with patches of
# 16; a Swin, ResNet or ConvNeXt with maps of stride 32 needs 32.
# Trainable: 2 * 3 * width * (H + W + 2 * width)
method = dict(
    image_prompt=dict(type='vpt_dense.PadPrompt', width=16, mean=None, std=None),
    trainable=[r'^image_prompt\.'],
)
optim_group = 'prompts'
