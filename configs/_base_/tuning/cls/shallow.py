# VPT-shallow (https://arxiv.org/abs/2203.12119): prompts before the first block, no dropout. The
# paper searches the number of tokens in {1, 5, 10, 50, 100, 200} for each data set.
_base_ = './_sgd.py'
tuning = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=10, deep=False, dropout=0.0),
    trainable=[r'^prompt\.'],
)
