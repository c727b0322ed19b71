"""Fixtures for all tests."""

import gc
import subprocess

import pytest
import torch
from mmengine.registry import DefaultScope
from tool_helpers import forget_runs
from utils import in_scope, make_ade_folder


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """No garbage is looked for while all is imported, nor in that afterwards.

    mmengine collects garbage for every data set: that would take a second each.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _fresh():
    """No test sees the random numbers or the default scope that another one left."""
    if torch.cuda.is_initialized():
        torch.manual_seed(0)
    else:  # the same, without a millisecond for noting what CUDA is to be seeded with
        torch.default_generator.manual_seed(0)
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module', autouse=True)
def _frozen():
    """What the tests of a file leave behind is looked through for garbage once."""
    yield
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip('mounting needs root')
    yield folder
    forget_runs()  # their logs are gone with the disk
    # Lazily: where a test has failed, a log may be open still.
    subprocess.run(['umount', '-l', str(folder)], check=True)
