"""Predicted classes as a file."""

import json
from typing import Any

import mmengine
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense import safe_files
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class PredictionsHook(Hook):
    """Stores what a test predicts for each image, in the order of the data set.

    In a ``.json`` (a list) or ``.jsonl`` file (one a line) an image is ``{"path": its file,
    "truth": its class or null, "prediction": the class, "scores": {class: score, ...}}``; a list of
    classes where there may be several. A ``.pkl`` file is the one of mmpretrain's ``--out``
    (mmengine's ``DumpResults``): a list of the data samples as dicts.

    Args:
        out_file: The file.
    """

    def __init__(self, out_file: str) -> None:
        self.out_file = str(out_file)
        self._samples: list[dict] = []

    def before_test(self, runner: Runner) -> None:
        """Start anew."""
        self._samples = []

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keep what was predicted."""
        self._samples += [sample.to('cpu').to_dict() for sample in outputs]

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Write the predictions of all processes."""
        dataset = runner.test_loop.dataloader.dataset
        # By the process group, whatever it is: 'cpu' would leave a folder .dist_test.
        samples = collect_results(self._samples, len(dataset), 'gpu')
        self._samples = []
        if not is_main_process():
            return
        if self.out_file.endswith('.pkl'):
            mmengine.dump(samples, self.out_file)
        else:
            names = _unique(dataset.metainfo.get('classes') or ())
            records = [_record(sample, names) for sample in samples]
            if self.out_file.endswith('.jsonl'):
                lines = [json.dumps(record, ensure_ascii=False) for record in records]
                safe_files.write_text(self.out_file, ''.join(f'{line}\n' for line in lines))
            else:
                text = json.dumps(records, indent=1, ensure_ascii=False)
                safe_files.write_text(self.out_file, f'{text}\n')
        runner.logger.info('%d predictions written to %s', len(samples), self.out_file)


def _unique(classes: list[str]) -> list[str]:
    """Names of classes, with their label where two have the same (ImageNet's 'crane')."""
    names = [str(name) for name in classes]
    return [name if names.count(name) == 1 else f'{name} ({label})'
            for label, name in enumerate(names)]  # fmt: skip


def _record(sample: dict, names: list[str]) -> dict:
    def told(key: str) -> str | list[str] | None:
        if sample.get(key) is None:
            return None
        labels = [names[label] if names else str(label) for label in sample[key].tolist()]
        return labels[0] if len(labels) == 1 else labels

    scores = [round(score, 6) for score in sample['pred_score'].tolist()]
    return {
        'path': sample.get('img_path'),
        'truth': told('gt_label'),
        'prediction': told('pred_label'),
        'scores': dict(zip(names, scores, strict=True)) if names else scores,
    }
