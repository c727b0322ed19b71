# VPT-prefix (https://arxiv.org/abs/2203.12119, appendix): trainable keys and values in every block,
# which start as those that the blocks make of VPT-deep's prompts.
_base_ = './_adamw.py'
tuning = dict(
    prompt=dict(type='vpt_dense.PrefixPrompt', num_tokens=10),
    trainable=[r'^prompt\.'],
)
