"""README and docs name what is there: files, headings, commands, their options, configs."""

import json
import re
from functools import cache

import method_options
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from plain_models import SMALL, of_another_library
from tool_helpers import run_tool
from transformers import AutoModel
from utils import CONFIGS, ROOT, images, randomise

import vpt_dense
from vpt_dense import pretraining
from vpt_dense.tuning import is_added

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md')),
         ROOT / 'docs/tutorial.ipynb']
_LINK = re.compile(r'\]\(([^)\s]+)\)')
_COMMAND = re.compile(r'(?:python tools/(\w+)\.py|vpt-dense ([a-z][\w-]*))(.*)')
#: Configs that a reader writes.
_OWN = re.compile(r'configs/mine/|.*/(NAME|my)\.py')

page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


@cache
def read(path) -> str:
    """A page; a notebook as one, without its outputs."""
    if path.suffix != '.ipynb':
        return path.read_text()
    cells = [(cell['cell_type'], ''.join(cell['source']))
             for cell in json.loads(path.read_text())['cells']]
    return '\n'.join(text if kind == 'markdown' else f'```bash\n{text}\n```' if '%%bash' in text
                     else f'```\n{text}\n```' for kind, text in cells)


def anchors(path) -> set[str]:
    """The anchors of a page's headings, as GitHub and myst make them."""
    text = re.sub(r'```.*?```', '', read(path), flags=re.DOTALL)
    titles = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    titles = [re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', title) for title in titles]
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@page
def test_pages_are_text(page):
    """A line of a table that a program wrote may hold what it read from a terminal."""
    strange = re.compile(r'[^\n\t -\uffff]|[\x7f-\x9f]|^/(root|home|tmp|work)/', re.MULTILINE)
    assert strange.search(page.read_text()) is None


@page
def test_links_lead_somewhere(page):
    for link in _LINK.findall(read(page)):
        if re.match(r'[a-z]+:', link):
            continue
        name, _, anchor = link.partition('#')
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@page
def test_configs_exist(page):
    for name in re.findall(r'\bconfigs/[\w./-]+\.py\b', read(page)):
        assert _OWN.match(name) or (ROOT / name).exists(), name
    for name in re.findall(r'\bvpt_dense::([\w.-]+\w)', read(page)):
        known = {path.stem for path in CONFIGS.rglob('*.py')}
        assert name in known or name == 'NAME', name


def options(capfd, tool: str) -> str:
    """What a tool's help says, with that of its sub-commands."""
    told = run_tool(capfd, tool, '--help').out
    for name in re.findall(r'^    (\w+)(?: |$)', told, re.MULTILINE):
        told += run_tool(capfd, tool, name, '--help').out
    return told


def commands() -> dict[tuple[str, str], None]:
    """(tool, option) of every command in a code block, in order."""
    from vpt_dense.cli import COMMANDS

    found: dict[tuple[str, str], None] = {}
    for path in PAGES:
        for block in re.findall(r'```bash\n(.*?)```', read(path), re.DOTALL):
            for tool, name, rest in _COMMAND.findall(block.replace('\\\n', ' ')):
                tool = tool or COMMANDS[name][0]
                rest = rest.split(' # ')[0].split(' | ')[0]
                for option in re.findall(r'(?<=\s)--[a-z][\w-]*', rest):
                    found[tool, option] = None
    return found


def test_options_exist(capfd):
    wanted = commands()
    assert len(wanted) > 20
    told = {tool: options(capfd, tool) for tool, _ in wanted}
    unknown = [pair for pair in wanted if not re.search(rf'{pair[1]}\b', told[pair[0]])]
    assert unknown == []


# --- the code of plain PyTorch -----------------------------------------------------------------


def blocks(name: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (ROOT / name).read_text(), re.DOTALL)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """timm's models are small, with 12 blocks, and its weights are files in this folder."""
    make = timm.create_model

    def create_model(name, pretrained=False, **options):
        model = make(name, pretrained=False, **{**SMALL, 'depth': 12, 'img_size': 64, **options})
        file = tmp_path / f'{name.partition(".")[0]}.pth'
        if not file.exists():
            torch.save(randomise(model).state_dict(), file)
        if pretrained:
            model.load_state_dict(torch.load(file), strict=options.get('num_classes') == 0)
        return model

    def address(model):
        name = model.pretrained_cfg['architecture']
        own = {n: t for n, t in model.state_dict().items() if not is_added(n)}
        assert own.keys() == torch.load(tmp_path / f'{name}.pth').keys()
        return str(tmp_path / f'{name}.pth')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        AutoModel, 'from_pretrained', lambda _: of_another_library('DINOv3ViTModel'))
    monkeypatch.setattr(timm, 'create_model', create_model)
    monkeypatch.setattr(pretraining, 'address', address)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    Image.fromarray(pixels).save('photo.jpg')
    batches = [(images(2, 3, 64, 64, seed=i), torch.randint(0, 3, (2, 64, 64))) for i in range(2)]
    return dict(images=batches[0][0], photos=batches[1][0], loader=batches)


def test_the_code_of_the_page_for_pytorch_runs(small, tmp_path):
    found = blocks('docs/pytorch.md')
    assert len(found) >= 9
    for block in found:
        if "base='weights.safetensors'" in block:  # the same weights at another place
            from safetensors.torch import save_file

            save_file(torch.load('vit_small_patch16_dinov3.pth'), 'weights.safetensors')
        exec(compile(block, 'docs/pytorch.md', 'exec'), small)
    assert small['features'].shape == (2, 32) and small['logits'].shape == (2, 10)
    assert small['states'].shape[::2] == (2, 32)
    assert small['tokens'].shape == (2, 5 + 16, 32)
    assert [each.shape for each in small['maps']] == 2 * [(2, 32, 4, 4)]
    assert small['scores'].shape == (2, 3, 64, 64) and small['labels'].shape == (50, 70)
    assert small['model'].prompt is None and len(small['model'].adapters) == 1
    read = vpt_dense.load('gathered.safetensors')
    assert torch.equal(read(small['images']), small['segmentor'].eval()(small['images']))


def test_the_code_of_the_readme_runs(small):
    (block,) = (each for each in blocks('README.md') if 'create_segmentor' in each)
    exec(compile(block, 'README.md', 'exec'), small)
    model = small['model'].eval()
    again = vpt_dense.load('tuned.safetensors')
    assert torch.equal(again(small['images']), model(small['images']))


def test_the_count_of_the_page_is_right():
    (told,) = re.findall(r"\{'trainable': (\d+), 'total': (\d+), 'percent': (0\.\d+)\.\.\.\}",
                         (ROOT / 'docs/pytorch.md').read_text())  # fmt: skip
    counts = vpt_dense.count(
        vpt_dense.create_backbone('vit_small_patch16_dinov3.lvd1689m', 'deep', pretrained=False))
    assert told[:2] == (str(counts['trainable']), str(counts['total']))
    assert str(counts['percent']).startswith(told[2])


def test_every_function_method_and_option_is_on_the_page_for_pytorch():
    """The table is written by ``python tests/method_options.py``."""
    page = (ROOT / 'docs/pytorch.md').read_text()
    assert '\n'.join(method_options.rows()) in page
    assert [name for name in vpt_dense.__all__ if name != '__version__' and name not in page] == []
