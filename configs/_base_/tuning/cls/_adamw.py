# Full, partial and bias tuning: AdamW. The paper searches the base learning rate (for 256 images a
# step, see schedules/cls_100e.py) in {0.005, 0.001, 0.0005, 0.0001} and the weight decay in
# {0.01, 0.001, 0.0001, 0} for each data set; these are middles of the grids.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.0001),
)
