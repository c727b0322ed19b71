_base_ = '../vpt/vit-b_deep_imagefolder.py'
dataset = dict(data_root='data/flowers')
