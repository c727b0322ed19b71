# SETR on the small ViT of this repository, digits: VPT-deep whose prompts stay as they start.
_base_ = ['./_setr_digits.py', '../_base_/tuning/prompt-fixed.py']
_prompt = dict(_base_.tuning.prompt, num_tokens=20)
model = dict(backbone=dict(_base_.tuning, prompt=_prompt))
optim_wrapper = _base_.demo_optim.head
