"""README and docs name what is there: files, headings, commands, their options, configs."""

import re
import subprocess
import sys
from functools import cache

import pytest
from utils import CONFIGS, ROOT

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
_LINK = re.compile(r'\]\(([^)\s]+)\)')
_COMMAND = re.compile(r'(?:python tools/(\w+)\.py|vpt-dense ([a-z][\w-]*))(.*)')
#: Configs that a reader writes.
_OWN = re.compile(r'configs/mine/|.*/(NAME|my)\.py')

page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def anchors(path) -> set[str]:
    """The anchors of a page's headings, as GitHub and myst make them."""
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
    titles = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    titles = [re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', title) for title in titles]
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@page
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text()):
        if re.match(r'[a-z]+:', link):
            continue
        name, _, anchor = link.partition('#')
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@page
def test_configs_exist(page):
    for name in re.findall(r'\bconfigs/[\w./-]+\.py\b', page.read_text()):
        assert _OWN.match(name) or (ROOT / name).exists(), name
    for name in re.findall(r'\bvpt_dense::([\w.-]+\w)', page.read_text()):
        known = {path.stem for path in CONFIGS.rglob('*.py')}
        assert name in known or name == 'NAME', name


@cache
def options(tool: str) -> str:
    """What a tool's help says, with that of its sub-commands."""
    command = [sys.executable, str(ROOT / f'tools/{tool}.py')]
    told = subprocess.run([*command, '--help'], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r'^    (\w+) ', told, re.MULTILINE):
        more = subprocess.run([*command, name, '--help'], capture_output=True, text=True)
        told += more.stdout
    return told


def commands() -> dict[tuple[str, str], None]:
    """(tool, option) of every command in a code block, in order."""
    from vpt_dense.cli import COMMANDS

    found: dict[tuple[str, str], None] = {}
    for path in PAGES:
        for block in re.findall(r'```bash\n(.*?)```', path.read_text(), re.DOTALL):
            for tool, name, rest in _COMMAND.findall(block.replace('\\\n', ' ')):
                tool = tool or COMMANDS[name][0]
                rest = rest.split(' # ')[0].split(' | ')[0]
                for option in re.findall(r'(?<=\s)--[a-z][\w-]*', rest):
                    found[tool, option] = None
    return found


def test_options_exist():
    wanted = commands()
    assert len(wanted) > 20
    unknown = [pair for pair in wanted if not re.search(rf'{pair[1]}\b', options(pair[0]))]
    assert unknown == []
