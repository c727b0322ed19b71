# Learnt channels behind those of the image ("below" of VPT, https://arxiv.org/abs/2203.12119). The
# whole first convolution trains: by the names that it has in a ViT or Swin, a ResNet, a ConvNeXt.
# Trainable: num_channels * H * W + (3 + num_channels) * kernel * d[0] + bias
method = dict(
    image_prompt=dict(type='vpt_dense.ConcatChannelPrompt', num_channels=5, mean=None, std=None),
    trainable=[
        r'^image_prompt\.',
        r'^(patch_embed\.proj(ection)?|conv1|downsample_layers\.0\.0)\.',
    ],
)
optim_group = 'patch_embed'
