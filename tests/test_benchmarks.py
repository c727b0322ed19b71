"""The benchmarks run and measure what they say; their times are nobody's promise."""

import re
import subprocess
import sys

import pytest
import torch
from utils import ROOT

TINY = ['--arch', 'deit-tiny', '--layers', '2', '--img-size', '32', '--batch', '1', '--tokens',
        '100', '--rounds', '2']


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / 'tools/benchmark' / script, *arguments],
        capture_output=True, text=True)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_prompts(dtype):
    done = run('prompts.py', *TINY, '--dtype', dtype)
    assert (done.returncode, done.stderr) == (0, '')
    kept = {way: float(ratio) for way, ratio in re.findall(
        r'│ +(no prompts|keys_values|tokens) │.*│ +([\d.]+) \(', done.stdout)}
    assert kept['no prompts'] == 1 < kept['keys_values'] < kept['tokens']
    assert dtype in done.stdout and f'torch {torch.__version__}' in done.stdout


def test_attention():
    done = run('attention.py', '--rounds', '1')
    assert (done.returncode, done.stderr) == (0, '')
    rows = [line.split('│')[1:-1] for line in done.stdout.splitlines() if line.startswith('│')]
    assert len(rows) == 6 and all(float(cell) > 0 for row in rows for cell in row[2:])


@pytest.mark.parametrize(('script', 'arguments', 'told'), [
    ('prompts.py', ['--rounds', '1'], '--rounds must be at least 2'),
    ('prompts.py', ['--arch', 'giant-27'], "--arch giant-27: not one of ['b', "),
    ('attention.py', ['--rounds', '0'], '--rounds must be at least 1'),
])
def test_bad_options_are_one_line(script, arguments, told):
    done = run(script, *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert told in line
