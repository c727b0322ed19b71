# ViT-Split's head (https://arxiv.org/abs/2506.03433) on ViT-L: two transposed convolutions, a batch
# norm and a 1x1 convolution on the map of the last block, in whose place the method vit-split puts
# its own. Tokens are not normalised behind the last block.
_base_ = './linear_vit-l.py'
model = dict(decode_head=dict(type='vpt_dense.DeconvHead'))
