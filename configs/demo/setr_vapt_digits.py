# SETR on the small ViT of this repository, digits: VAPT.
_base_ = ['./_setr_digits.py', '../_base_/tuning/vapt.py']
_prompt = dict(_base_.tuning.prompt, num_tokens=20, grid=(12, 12), dropout=0.0)
model = dict(backbone=dict(_base_.tuning, prompt=_prompt))
optim_wrapper = _base_.demo_optim.prompts
