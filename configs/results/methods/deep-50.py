# VPT-deep with 50 prompts in place of 10.
_base_ = '../../_base_/methods/deep.py'
method = dict(prompt=dict(num_tokens=50))
