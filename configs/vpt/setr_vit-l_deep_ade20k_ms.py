# The same model, tested at six scales and mirrored (tools/test.py does it as with --tta).
_base_ = './setr_vit-l_deep_ade20k.py'
tta = True
