"""The console command ``vpt-dense``, which is ``python -m vpt_dense`` too."""

import importlib
import os
import sys

from vpt_dense import errors, preemption
from vpt_dense.version import __version__

#: Command -> its module in vpt_dense.commands, what it does.
COMMANDS = {
    'train': ('train', 'train a model, or go on with a run'),
    'test': ('test', 'test a checkpoint: metrics, label maps, pictures'),
    'predict': ('predict', 'predict images: label maps or classes'),
    'compare': ('compare', 'train, test and measure methods x seeds'),
    'search': ('search', "search a method's rates and other settings, with equal trials"),
    'suite': ('benchmark_suite', 'many tasks x methods x seeds, here or on a cluster'),
    'analyse': ('analyse', 'attention, features, errors, curves, cost: pictures and numbers'),
    'continual': ('continual', 'classes that come in steps: train, test, forgetting'),
    'base-to-new': ('base_to_new', 'half of the classes trains, both are tested (CLIP)'),
    'federated': ('federated', 'deal images to clients, an app for Flower: deltas move'),
    'report': ('report', 'write report.html of runs or of a comparison'),
    'count': ('count_params', 'count parameters, or estimate memory'),
    'config': ('print_config', 'print a config as a run uses it'),
    'check': ('check_dataset', 'look for faults in a data set; mean and std of its bands'),
    'data': ('data', 'VTAB-1k and FGVC: what is missing; lists of few images'),
    'browse': ('browse_dataset', 'draw images as training sees them'),
    'delta': ('delta', 'checkpoints of what was tuned: extract, merge, fold, push, ...'),
    'ensemble': ('ensemble', 'several deltas on one backbone'),
    'export': ('export', 'write a model as ONNX or as a graph of torch.export'),
    'serve': ('serve', 'many tasks on one backbone over HTTP; ask such a server'),
    'ask': ('ask', 'ask a server for predictions: label maps or classes'),
    'zoo': ('zoo', 'list the models that come along: zoo::NAME'),
    'demo': ('demo', 'prompt tuning against its alternatives, in minutes'),
    'make-dataset': ('make_dataset', "make the demo's data"),
}

#: Commands that the list shows otherwise, so that it fits a screen: as what; empty: not at all.
_SHOWN = {'serve': 'serve, ask', 'ask': '', 'make-dataset': ''}


def usage() -> str:
    """The list of commands, as text."""
    shown = {_SHOWN.get(name, name): text for name, (_, text) in COMMANDS.items()}
    width = max(map(len, shown))
    lines = [f'  {name:{width}}  {text}' for name, text in shown.items() if name]
    return '\n'.join([
        'usage: vpt-dense COMMAND [ARGUMENT ...]    (vpt-dense COMMAND --help tells more)',
        *lines, 'A config is a file, or one that comes along: vpt_dense::setr_vit-l_ade20k'])


def main() -> None:
    """Run a command.

    Raises:
        UserError: If there is none of that name.
    """
    if '_ARGCOMPLETE' in os.environ:
        from vpt_dense import completion

        sys.argv[1:] = [completion.begin(COMMANDS)]
    name, *argv = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(usage())
        return
    if name == '--version':
        print(f'vpt-dense {__version__}')
        return
    if name not in COMMANDS:
        raise errors.UserError(
            f'vpt-dense {name}: there is no such command{errors.suggest(name, COMMANDS)}; '
            'see vpt-dense --help')
    if name == 'train':
        preemption.listen()  # before anything that takes time is imported
    sys.argv = [f'vpt-dense {name}', *argv]  # what help and records call it
    importlib.import_module(f'vpt_dense.commands.{COMMANDS[name][0]}').main(argv)


def run() -> None:
    """The entry point."""
    errors.main(main)
