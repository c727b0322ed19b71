"""docs/tutorial.ipynb as it is committed; `make test-notebook` runs it."""

import json
import re

from utils import ROOT

TEXT = (ROOT / 'docs/tutorial.ipynb').read_text(encoding='utf-8')
CELLS = json.loads(TEXT)['cells']
CODE = [cell for cell in CELLS if cell['cell_type'] == 'code']
OUTPUTS = [output for cell in CODE for output in cell['outputs']]


def test_it_was_run_from_the_first_cell_to_the_last():
    assert [cell['execution_count'] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {output['output_type'] for output in OUTPUTS} == {
        'stream', 'display_data', 'execute_result'}


def test_what_it_shows_is_for_everybody():
    """No path of a machine, no warnings and progress; `tools/dev/write_tutorial.py` drops them."""
    assert not re.search(r'(?<![\w.])/(home|Users|root|tmp|work|mnt|opt)/', TEXT)
    assert 'stderr' not in {output.get('name') for output in OUTPUTS}
    pictures = [output['data']['image/png'] for output in OUTPUTS
                if 'image/png' in output.get('data', {})]
    assert pictures and len(TEXT) < 250_000
