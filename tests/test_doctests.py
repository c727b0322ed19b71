"""The examples in docstrings say what happens."""

import doctest
import importlib

import pytest
from utils import ROOT

MODULES = ['.'.join(path.relative_to(ROOT).with_suffix('').parts)
           for path in sorted((ROOT / 'vpt_dense').rglob('*.py'))
           if '>>> ' in path.read_text(encoding='utf-8')]


def test_the_functions_for_plain_pytorch_have_examples():
    assert {'vpt_dense.plain.models', 'vpt_dense.plain.tasks'} <= {*MODULES}


@pytest.mark.parametrize('module', MODULES)
def test_examples_are_true(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried and not failed
