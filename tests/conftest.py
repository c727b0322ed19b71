"""Fixtures for all tests."""

import pytest
import torch
from mmengine.registry import DefaultScope
from utils import in_scope, make_ade_folder


@pytest.fixture(autouse=True)
def _fresh():
    """No test sees the random numbers or the default scope that another one left."""
    torch.manual_seed(0)
    DefaultScope._instance_dict.clear()


@pytest.fixture
def mmseg_scope():
    """Resolve unscoped config strings in mmseg."""
    in_scope('mmseg')


@pytest.fixture
def mmpretrain_scope():
    """Resolve unscoped config strings in mmpretrain."""
    in_scope('mmpretrain')


@pytest.fixture(scope='session')
def ade_folder(tmp_path_factory):
    """A folder in ADE20K's layout with 150 classes and 64x64 images; do not write into it."""
    return make_ade_folder(tmp_path_factory.mktemp('ade'))
