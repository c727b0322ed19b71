"""Transfer between tasks: similarity, prediction, starts; a whole small matrix."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import ROOT, images

from vpt_dense import safe_files
from vpt_dense.analysis import transfer
from vpt_dense.errors import UserError
from vpt_dense.hooks import PromptFileHook


def test_similarities_are_their_formulas():
    one, other, first = (images(2, 3, 5, seed=i).double() for i in range(3))

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    wanted = dict(
        mean_prompts=np.mean([cosine(one[i].mean(0), other[i].mean(0)) for i in range(2)]),
        tokens=np.mean([cosine(a, b) for i in range(2) for a in one[i] for b in other[i]]),
        vectors=np.mean([cosine((one - first)[i].flatten(), (other - first)[i].flatten())
                         for i in range(2)]))
    for kind, value in wanted.items():
        assert transfer.similarity(one, other, first, kind) == pytest.approx(value), kind


def test_prediction_is_a_rank_correlation():
    rng = np.random.default_rng(0)
    names = ['a', 'b', 'c', 'd']
    similar = {one: {other: rng.random() for other in names} for one in names}
    gains = {target: {source: rng.normal() for source in names if source != target}
             for target in names}
    gains['a']['add'] = 99.0  # no source
    found = transfer.predict(similar, gains)
    x = [similar[s][t] for t in names for s in names if s != t]
    y = [gains[t][s] for t in names for s in names if s != t]
    ranks = [stats.rankdata(values) for values in (x, y)]
    assert found['spearman'] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found['pairs'] == 12 and 0 <= found['p_value'] <= 1
    same = {one: dict.fromkeys(names, 1.0) for one in names}
    assert transfer.predict(same, gains)['spearman'] is None


@pytest.mark.parametrize(('name', 'record'), [
    ('transfer_results', 'transfer/dense'), ('multi_task_results', 'multi-task/camvid')])
def test_the_tables_of_pages_are_of_their_records(name, record):
    spec = importlib.util.spec_from_file_location(name, ROOT / f'tools/dev/{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.PAGE.read_text(encoding='utf-8')
    found = json.loads((ROOT / f'docs/{record}.json').read_text(encoding='utf-8'))
    table = tool.table(found)
    assert tool.MARK.search(text)[0] == f'{tool.MARK.search(text)[1]}{table}\n'
    assert table.count('\n') > 5


def runner_of(tokens, **more):
    backbone = torch.nn.Module()
    backbone.prompt = torch.nn.Module()
    backbone.prompt.tokens = torch.nn.Parameter(tokens)
    backbone.head = torch.nn.Parameter(torch.zeros(2))
    model = torch.nn.Module()
    model.backbone = backbone
    return SimpleNamespace(**{
        'iter': 0, '_has_loaded': False, 'model': model,
        'logger': SimpleNamespace(info=lambda *_: None), **more})


def test_a_start_takes_prompts_alone(tmp_path):
    file, tokens = tmp_path / 'prompt.safetensors', images(1, 2, 4)
    safe_files.write_tensors({
        'backbone.prompt.tokens': tokens, 'backbone.head': torch.ones(2),
        'decode_head.conv.weight': torch.ones(2)}, file, {})
    runner = runner_of(torch.zeros(1, 2, 4))
    PromptFileHook(str(file)).before_train(runner)
    assert torch.equal(runner.model.backbone.prompt.tokens, tokens)
    assert not runner.model.backbone.head.any()
    resumed = runner_of(torch.zeros(1, 2, 4), iter=3)
    PromptFileHook(str(file)).before_train(resumed)
    assert not resumed.model.backbone.prompt.tokens.any()
    with pytest.raises(UserError, match=r'is \(1, 2, 4\) there, \(1, 3, 4\) in the model'):
        PromptFileHook(str(file)).before_train(runner_of(torch.zeros(1, 3, 4)))
    safe_files.write_tensors({'decode_head.conv.weight': torch.ones(2)}, file, {})
    with pytest.raises(UserError, match='has neither prompts nor adapters'):
        PromptFileHook(str(file)).before_train(runner)


@pytest.mark.parametrize(('text', 'message'), [
    ('tasks = dict(a=dict(recipe="x"))', 'two tasks or more'),
    ('tasks = dict(a=dict(recipe="x"), b=dict(recip="x"))', 'tasks.b must be a dict of recipe'),
    ('tasks = dict(a=dict(recipe="x"), add=dict(recipe="x"))', 'tasks.add: take another name'),
    ('tasks = dict(a=dict(recipe="x"), b=dict(recipe="x"))\nshare = 2', 'share must be at most 1'),
    ('tasks = dict(a=dict(recipe="x"), b=dict(recipe="x"))\nseed = [1]', "nothing reads 'seed'"),
    ('tasks = dict(a=dict(recipe="x"), b=dict(recipe="x"))\noptions = ["x"]', 'list of overrides'),
])
def test_what_a_file_of_tasks_may_not_say(text, message, tmp_path):
    file = tmp_path / 'tasks.py'
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        transfer.read(str(file))


@pytest.mark.slow
def test_a_matrix_of_two_tasks(tmp_path, capfd):
    """Runs from every start, vectors that add up, files, and nothing twice."""
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'ade'))
    leaf.write_text(leaf.read_text().replace('setr_vit-l_deep', 'setr_vit-l').replace(
        ',\n        prompt=dict(num_tokens=2))', ')'))  # a recipe
    file, out = tmp_path / 'tasks.py', tmp_path / 'out'
    file.write_text(
        f'tasks = dict(a=dict(recipe={str(leaf)!r}), b=dict(recipe={str(leaf)!r}, '
        "options=['train_cfg.max_iters=3', 'train_cfg.val_interval=3']))\nshare = 0.5\n"
        "options = ['model.backbone.prompt.num_tokens=2']\n")
    missing = run_tool(capfd, 'transfer', file, '--out', out, '--table')
    assert missing.code and 'the run is not finished' in missing.err
    made = run_tool(capfd, 'transfer', file, '--out', out)
    assert made.code == 0, made.err
    found = json.loads((out / 'transfer.json').read_text())
    assert len(found['rows']) == 8
    assert {row['gain'] for row in found['rows'] if row['start'] == 'random'} == {0}
    first, a, b, added = (transfer.read_tokens(out / name) for name in (
        'start/0.safetensors', 'sources/a/0/prompt.safetensors', 'sources/b/0/prompt.safetensors',
        'start/add-a-0.safetensors'))
    assert not torch.equal(first, a) and not torch.equal(a, b)
    torch.testing.assert_close(added, b)  # of two tasks, the other's vector alone
    assert len((out / 'transfer.csv').read_text().splitlines()) == 9
    assert (out / 'gains.svg').stat().st_size and (out / 'vectors.png').stat().st_size
    before = {path: path.stat().st_mtime_ns for path in out.rglob('score.json')}
    assert len(before) == 10
    again = run_tool(capfd, 'transfer', file, '--out', out)
    assert again.code == 0, again.err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob('score.json')}
    file.write_text(file.read_text().replace('share = 0.5', 'share = 1.0'))
    other = run_tool(capfd, 'transfer', file, '--out', out)
    assert other.code and 'is of a run with other settings' in other.err
