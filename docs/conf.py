"""Settings of Sphinx for `make docs`."""

from vpt_dense import __version__

project = 'vpt_dense'
release = __version__
extensions = ['myst_parser', 'sphinx.ext.apidoc', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
apidoc_modules = [{
    'path': '../vpt_dense', 'destination': 'api', 'separate_modules': True,
    # mmcv's cache_randomness fails where a method is asked of its class, as Sphinx does.
    'exclude_patterns': ['**/datasets/augment.py'],
}]
autodoc_default_options = {'members': True, 'show-inheritance': True}
exclude_patterns = ['_build', 'api/modules.rst']
napoleon_use_ivar = True  # attributes in a class's docstring are not documented twice
html_theme = 'furo'
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
# Pages link to files of the repository as one reads them there; Sphinx sees docs/ only.
suppress_warnings = ['myst.xref_missing']
