"""Ensembles: several sets of prompts, each with heads of its own, on one frozen backbone.

A batch is laid out member by member, (k * B, ...): the first B are those of member 0. In training
the loader gives every member images of its own (:mod:`vpt_dense.ensemble.sampler`); at test time
all see the same B, whose tokens the backbone repeats. Source: Jia et al., ECCV 2022
(https://arxiv.org/abs/2203.12119), appendix: five runs of different seeds whose predictions are
averaged. In what domain is not said there; here probabilities are averaged.
"""
