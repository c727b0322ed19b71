"""docs/methods.md says what the code counts."""

import runpy
import sys
from unittest import mock

import pytest
import sizes
from mmengine.config import Config
from utils import ROOT

from vpt_dense import method_files, tasks

DOC = ROOT / 'docs/methods.md'


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(ROOT / 'tools/methods_table.py'))


@pytest.fixture(scope='module')
def table(tool):
    return tool['table']()


@pytest.mark.slow
def test_the_page_has_the_table(tool, table):
    begin, end = tool['BEGIN'], tool['END']
    written = DOC.read_text().partition(begin)[2].partition(end)[0].strip()
    assert written == table, 'run: python tools/methods_table.py --update docs/methods.md'


@pytest.mark.slow
def test_counts_are_those_of_the_formulas(tool, table):
    """At the sizes of the columns; also where a method has settings of its own for a task."""
    columns = dict(
        classification=sizes.vit(768, 12, 3072, 224, 16, vector=True, reads_patches=False),
        segmentation=sizes.vit(1024, 24, 4096, 512, 16, outputs=4, norms=0))
    rows = {cells[0].strip('`'): cells for cells in (
        line.strip('| ').split(' | ') for line in table.splitlines()[2:])}
    for name, cells in rows.items():
        assert cells[5] == f'`{sizes.formula_of(name)}`'
        for found, (task, of_task) in zip(cells[6:], columns.items(), strict=True):
            file = method_files.find(name, tasks.TASKS[task])
            method = Config.fromfile(file).method.to_dict()
            if found != '-':
                assert found == f'{sizes.count(cells[5].strip("`"), of_task, method):,}', name
    # The published counts of the paper's code, ViT-B: bias with the final norm, the last block.
    assert rows['bias'][6] == '102,912' and rows['partial-1'][6] == '7,089,408'
    assert rows['full'][6] == '85,798,656' and rows['full'][7] == '304,147,456'
    assert rows['lora'][4] == 'yes' and rows['deep-lora'][4] == 'adapters'
    assert rows['samples'][2] == rows['prototypes'][2] == 'ViT'  # as their hook says
    assert rows['head'][2] == 'ViT, Swin, ResNet, ConvNeXt' and rows['cls-token'][2] == 'ViT'


def test_the_page_says_what_the_names_of_formulas_are():
    text = DOC.read_text()
    for name in sizes.Sizes.__dataclass_fields__:
        assert f'| `{name}`' in text or f', `{name}`' in text, name


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
