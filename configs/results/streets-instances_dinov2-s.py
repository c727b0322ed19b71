# CamVid's cars and pedestrians as instances (what is connected of a class; 367, 101 and 233 images
# of 480x360, of which every third is tested on), otherwise as nuclei-instances_dinov2-s.py.
_base_ = './nuclei-instances_dinov2-s.py'
dataset = dict(data_root='data/streets-coco')
test_dataloader = dict(dataset=dict(indices=list(range(0, 233, 3))))
