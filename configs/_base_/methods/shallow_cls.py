# VPT-shallow for classification. The paper (https://arxiv.org/abs/2203.12119) searches the number
# of tokens in {1, 5, 10, 50, 100, 200} for each data set.
_base_ = './shallow.py'
method = dict(prompt=dict(num_tokens=10))
