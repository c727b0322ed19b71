# VPT-deep (https://arxiv.org/abs/2203.12119): fresh prompts before every block, dropout 0.1. The
# paper searches the number of tokens in {1, 5, 10, 50, 100, 200} for each data set.
_base_ = './_sgd.py'
tuning = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=10, deep=True, dropout=0.1),
    trainable=[r'^prompt\.'],
)
