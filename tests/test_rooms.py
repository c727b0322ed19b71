"""The package's folders import each other in one direction: none reaches itself through others."""

import ast
import functools
import re
from collections import defaultdict

import pytest
from utils import ROOT

PACKAGE = ROOT / 'vpt_dense'


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Dotted name -> tree of every module."""
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        parts = parts[:-1] if parts[-1] == '__init__' else parts
        found['.'.join(parts)] = ast.parse(path.read_text(encoding='utf-8'))
    return found


@functools.cache
def arrows() -> dict[str, dict[str, set[tuple[str, str]]]]:
    """Those of the source."""
    return arrows_of(modules())


def arrows_of(trees: dict[str, ast.Module]) -> dict[str, dict[str, set[tuple[str, str]]]]:
    """Room -> room that it imports -> (module, what it imports); imports in functions count.

    A room is a folder of the package, or a module beside them.
    """
    found = defaultdict(lambda: defaultdict(set))
    for module, tree in trees.items():
        for node in ast.walk(tree):
            targets = []
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('vpt_dense'):
                names = [f'{node.module}.{alias.name}' for alias in node.names]
                targets = [name if name in trees else node.module for name in names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names if alias.name in trees]
            for target in targets:
                rooms = [name.split('.')[1:2] for name in (module, target)]
                if all(rooms) and rooms[0] != rooms[1]:
                    found[rooms[0][0]][rooms[1][0]].add((module, target))
    return found


def circles(graph: dict[str, dict[str, set]]) -> list[list[str]]:
    """Ways that lead from a room through others back to it, one for each arrow that closes one."""
    found, done = [], set()

    def visit(room: str, way: list[str]) -> None:
        if room in way:
            found.append([*way[way.index(room):], room])
            return
        if room in done:
            return
        for other in sorted(graph.get(room, {})):
            visit(other, [*way, room])
        done.add(room)

    for room in sorted(graph):
        visit(room, [])
    return found


def test_no_circle_of_folders():
    graph = arrows()
    told = []
    for circle in circles(graph):
        steps = [f'{a} -> {b} ({" imports ".join(min(graph[a][b]))})'
                 for a, b in zip(circle, circle[1:], strict=False)]
        told.append(', '.join(steps))
    assert not told, 'folders in a circle:\n' + '\n'.join(told)
    assert len(graph) > 30 and sum(map(len, graph.values())) > 100


def floors(page: str) -> dict[str, int]:
    """Room -> number of its block on docs/map.md, counted from above."""
    (text,) = re.findall(r'```text\n(cli .*?)```', page, re.DOTALL)
    blocks = [re.findall(r'^(\w+) ', block, re.MULTILINE) for block in text.split('\n\n')]
    return {room: i for i, block in enumerate(blocks) for room in block}


def test_the_map_is_the_source():
    trees = modules()
    rooms = {name.split('.')[1] for name in trees if '.' in name} - {'__main__'}
    floor = floors((ROOT / 'docs/map.md').read_text())
    assert set(floor) == rooms
    against = [
        ' imports '.join(min(found)) for room, others in arrows().items()
        for other, found in others.items() if room in floor and floor[room] >= floor[other]]
    assert against == [], 'upwards, or along a block of the map'


def test_no_module_but_tools_knows_the_commands():
    graph = arrows()
    assert {room for room, others in graph.items() if 'commands' in others} <= {'commands', 'cli'}


def test_nobody_but_commands_knows_the_demo():
    graph = arrows()
    assert {room for room, others in graph.items() if 'demo' in others} == {'commands'}


@pytest.mark.parametrize('lazily', [False, True])
def test_a_circle_is_found(lazily):
    """Also one that a function closes."""
    line = 'from vpt_dense.b import two'
    trees = {
        'vpt_dense.a.one': ast.parse(f'def f():\n    {line}' if lazily else line),
        'vpt_dense.b': ast.parse(''), 'vpt_dense.b.two': ast.parse('import vpt_dense.c'),
        'vpt_dense.c': ast.parse('from vpt_dense.a.one import x'),
    }
    assert circles(arrows_of(trees)) == [['a', 'b', 'c', 'a']]
