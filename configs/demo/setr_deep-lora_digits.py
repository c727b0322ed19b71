# SETR on the small ViT of this repository, digits: VPT-deep and LoRA.
_base_ = ['./_setr_digits.py', '../_base_/tuning/deep-lora.py']
_prompt = dict(_base_.tuning.prompt, num_tokens=20, dropout=0.0)
model = dict(backbone=dict(_base_.tuning, prompt=_prompt))
optim_wrapper = _base_.demo_optim.both
