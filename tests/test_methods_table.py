"""docs/methods.md says what the code counts."""

import runpy
import sys
from unittest import mock

import pytest
from utils import ROOT

DOC = ROOT / 'docs/methods.md'


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(ROOT / 'tools/methods_table.py'))


@pytest.fixture(scope='module')
def table(tool):
    return tool['table']()


def test_the_page_has_the_table(tool, table):
    begin, end = tool['BEGIN'], tool['END']
    written = DOC.read_text().partition(begin)[2].partition(end)[0].strip()
    assert written == table, 'run: python tools/methods_table.py --update docs/methods.md'


def test_counts_by_formula(table):
    rows = {cells[0].strip('`'): cells for cells in (
        line.strip('| ').split(' | ') for line in table.splitlines()[2:])}
    for name, blocks, width, column in (('deep', 12, 768, 5), ('deep', 24, 1024, 6)):
        assert rows[name][column] == f'{blocks * 10 * width:,}'
        assert rows['lora'][column] == f'{4 * blocks * 8 * width:,}'
        assert rows['adaptformer'][column] == f'{blocks * (2 * width * 64 + 64 + width):,}'
    # The published counts of the paper's code, ViT-B: bias with the final norm, the last block.
    assert rows['bias'][5] == '102,912' and rows['partial-1'][5] == '7,089,408'
    assert rows['full'][5] == '85,798,656' and rows['full'][6] == '304,147,456'
    assert rows['lora'][4] == 'yes' and rows['deep-lora'][4] == 'adapters'
    assert rows['samples'][2] == rows['prototypes'][2] == 'ViT'  # as their hook says
    assert rows['head'][2] == 'ViT, Swin, ResNet, ConvNeXt' and rows['cls-token'][2] == 'ViT'


def test_update(tool, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{tool["BEGIN"]}\nold\n{tool["END"]}\nafter\n')
    update = tool['run']
    argv = ['methods_table.py', '--update', str(page)]
    with mock.patch.dict(update.__globals__, table=lambda: 'new'):
        with mock.patch.object(sys, 'argv', argv):
            update()
            assert page.read_text() == f'before\n{tool["BEGIN"]}\nnew\n{tool["END"]}\nafter\n'
            page.write_text('nothing')
            with pytest.raises(ValueError, match='page.md: no lines .*for the table'):
                update()
    assert page.read_text() == 'nothing'
