"""Options that training and testing share; for ``--help`` nothing else is imported."""

import argparse

from vpt_dense.errors import ArgumentParser


def add_common_options(parser: ArgumentParser) -> None:
    """Add the options that training and testing share."""
    add = parser.add_argument
    add(
        '--work-dir',
        help='folder for logs and results (default: work_dir of the config, or work_dirs/<config>, '
        'of a recipe work_dirs/<recipe>_<method>)',
    )
    parser.add_config_options('override settings, e.g. model.backbone.prompt.num_tokens=50')
    add(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes',
    )
    add('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def add_base_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the pretrained weights lie."""
    parser.add_argument(
        '--base',
        metavar='PATH',
        help='pretrained weights of the backbone, in place of model.backbone.init_cfg.checkpoint',
    )
