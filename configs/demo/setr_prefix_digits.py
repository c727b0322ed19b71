# SETR on the small ViT of this repository, digits: VPT-prefix.
_base_ = ['./_setr_digits.py', '../_base_/tuning/prefix.py']
_prompt = dict(_base_.tuning.prompt, num_tokens=20)
model = dict(backbone=dict(_base_.tuning, prompt=_prompt))
optim_wrapper = _base_.demo_optim.prompts
