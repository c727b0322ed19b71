"""Settings of Sphinx for `make docs`, whose source is the repository and not this folder.

Links of the pages are those that one follows in the repository: to README.md, to a page of docs/,
to a config or a program, which the site then brings along.
"""

from vpt_dense import __version__, logging

logging.filter_warnings()  # of the stack, which autodoc imports

project = 'vpt_dense'
copyright = 'the vpt_dense authors; Apache-2.0'
release = __version__
root_doc = 'docs/index'
extensions = ['myst_nb', 'sphinx.ext.apidoc', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
include_patterns = ['*.md', 'docs/**', 'pretrain/README.md', 'samples/*/README.md']
exclude_patterns = ['.*', 'build', 'data', 'docs/_build', 'docs/api/modules.rst', 'work_dirs']

# They are made of classes of mmdet, an extra.
_OF_MMDET = [f'**/{name}.py' for name in (
    'deploy/detectors', 'detection/coco_folder', 'detection/coco_metric',
    'detection/panoptic_folder', 'detection/panoptic_metric', 'detection/query_detector',
    'detection/semantic_head', 'hooks/boxes_hook', 'visualization/detection')]
# Likewise of the extra `serve`.
_OF_SERVE = [f'**/serving/{name}.py' for name in (
    'app', 'batching', 'fixed', 'guard', 'metrics', 'ray_app', 'server', 'tasks')]
apidoc_modules = [{
    'path': '../vpt_dense', 'destination': 'docs/api', 'separate_modules': True,
    'module_first': True, 'max_depth': 1,
    # mmcv's cache_randomness fails where a method is asked of its class, as Sphinx does.
    # Others import Flower, whose requirements fight with those of this page.
    'exclude_patterns': ['**/datasets/augment.py', *_OF_MMDET, *_OF_SERVE, *(
        f'**/federated/{name}.py'
        for name in ('checked', 'client', 'pfedpg_like', 'server', 'sgpt_like'))],
}]
autodoc_default_options = {'members': True, 'show-inheritance': True}
napoleon_use_ivar = True  # attributes in a class's docstring are not documented twice
# 'Returns: scores (B, K): of classes' has no type before the colon, but words: not links.
napoleon_use_rtype = False

html_theme = 'furo'
html_title = 'vpt_dense'
html_extra_path = ['start']  # index.html, which leads to docs/index.html
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # the tutorial rides with its outputs; `make test-notebook` runs it
nb_render_markdown_format = 'myst'  # tables in outputs

# `make docs-check`. Scripts make the headings of these pages.
linkcheck_anchors_ignore_for_url = [r'https://(github\.com|pypi\.org)/']
linkcheck_retries = 3
