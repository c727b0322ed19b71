# Adapters behind the MLP of every block (https://arxiv.org/abs/2005.00247), C / 8 wide, as the VPT
# paper compares with them.
_base_ = './_adamw.py'
tuning = dict(
    adapters=[dict(type='vpt_dense.BottleneckAdapter', reduction=8)],
    trainable=[r'^adapters\.'],
)
