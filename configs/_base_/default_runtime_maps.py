# default_runtime.py for maps of numbers (depth, normals), which are drawn in another way.
_base_ = './default_runtime.py'
visualizer = dict(type='vpt_dense.MapLocalVisualizer')
