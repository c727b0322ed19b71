# A learnt border around the image ("pad" of VPT, https://arxiv.org/abs/2203.12119), its method for
# convolutional networks, where the paper searches the width in {1, 3, 5, 7, 9, 11} pixels for each
# data set. Heads that pool over maps need no map that shows the image alone.
_base_ = './_sgd.py'
tuning = dict(
    image_prompt=dict(type='vpt_dense.PadPrompt', width=5, aligned=False, mean=None, std=None),
    trainable=[r'^image_prompt\.'],
)
