# APLA (https://arxiv.org/abs/2503.11335): the layer behind attention trains in every block.
# Its names are those of mmpretrain, timm, transformers and torchvision.
# Trainable: sum(n * (d * d + d))
method = dict(trainable=[
    r'^(?!head\.).*(attn|msa|attention)\.(proj|o_proj|out_proj|output\.dense)\.(weight|bias)$'])
optim_group = 'blocks'
