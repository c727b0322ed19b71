# "pad" for classification, VPT's method for convolutional networks
# (https://arxiv.org/abs/2203.12119), where the paper searches the width in {1, 3, 5, 7, 9, 11}
# pixels for each data set. Heads that pool over maps need no map that shows the image alone.
_base_ = './pad.py'
method = dict(image_prompt=dict(width=5, aligned=False))
