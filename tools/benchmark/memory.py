"""Bytes that a backbone keeps for backward, and its training step's time, in all ways.

``python tools/benchmark/memory.py --tokens 100``
``python tools/benchmark/memory.py --arch large --img-size 512 --batch 1 --tokens 50``
``python tools/benchmark/memory.py --dtype bfloat16 --ways reference ours lean frozen frozen-lean``
"""

from functools import partial

import common
import models

from vpt_dense.errors import main


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    line = models.parser(__doc__, ['reference', 'mmseg', 'tokens', 'ours', 'lean', 'with_cp'])
    line.set_defaults(against=['reference', 'ours'])
    args = line.parse_args()
    models.check(args)
    logging.filter_warnings()  # the imports have set their own
    rows = []
    for img_size, batch, images, built in models.groups(args):
        kept = {
            key: common.kept_bytes(partial(models.forward, model, images, args), model.parameters())
            for key, model in built.items()
        }
        steps = {key: models.train_step(model, images, args) for key, model in built.items()}
        for (way, tokens), seconds in common.in_turn(steps, args.rounds, args.device).items():
            rows.append(dict(img_size=img_size, batch=batch, tokens=tokens, way=way,
                             kept_bytes=kept[way, tokens], seconds=seconds))
    cells = models.table(rows, args, 'kept_bytes', lambda own, base: f'{own / base:.3f}')
    times = models.table(rows, args, 'seconds', common.ratio)
    for cell, row, time in zip(cells, rows, times, strict=True):
        cell.insert(len(models.COLUMNS), f'{row["kept_bytes"] / 1e6:.1f} MB')
        cell.extend(time[len(models.COLUMNS):])
    common.show(
        models.title(args, 'kept for backward'),
        [*models.COLUMNS, 'kept', *(f'kept / {way}' for way in models.bases(args)),
         *(f'time / {way}' for way in models.bases(args))],
        cells, note=models.legend(args.ways))
    common.write(args.json, args, models.figures('memory', args, rows))


if __name__ == '__main__':
    main(run)
