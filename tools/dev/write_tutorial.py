"""Runs docs/tutorial.ipynb and keeps what its cells print: after a change of it, or of commands.

``PATH=$PWD/.venv-notebook/bin:$PATH python tools/dev/write_tutorial.py``, with what `make
test-notebook` makes. Progress, warnings and the path of the checkout are left out.
"""

from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / 'docs/tutorial.ipynb'


def clean(output):
    """An output without the path of the checkout and trailing spaces."""
    if output.output_type == 'stream':
        text = output.text.replace(f'{ROOT}/', '')
        output.text = '\n'.join(line.rstrip() for line in text.split('\n'))
    return output


def main():
    """Runs it and writes it."""
    notebook = nbformat.read(FILE, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, record_timing=False, coalesce_streams=True,
        resources=dict(metadata=dict(path=ROOT)))
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = [clean(output) for output in cell.outputs
                            if output.get('name') != 'stderr']
    notebook.metadata.language_info = dict(name='python')
    nbformat.write(notebook, FILE)


if __name__ == '__main__':
    main()
