# SETR on the small ViT of this repository, digits: VPT-deep whose prompts stay as they start.
_base_ = ['./setr_digits.py', '../_base_/methods/prompt-fixed.py']
_prompt = dict(_base_.method.prompt, num_tokens=20)
model = dict(backbone=dict(_base_.method, prompt=_prompt))
optim_wrapper = _base_.optim[_base_.optim_group]
