"""Predictions: from Python (:func:`vpt_dense.load`) and as files (``tools/predict.py``).

:mod:`results` is what a prediction is and what a predictor must have; :mod:`inputs` finds images;
:mod:`model` predicts with a checkpoint; :mod:`writing` writes what any predictor yields.
"""
