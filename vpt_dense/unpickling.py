"""Names that a checkpoint's pickle may use beside tensors: a short list of harmless ones.

mmengine has a list for torch's ``weights_only`` reading too, but it holds ``getattr`` and
``numpy.ndarray``. From the first a crafted file climbs to ``exec`` (``getattr.__self__`` is the
module ``builtins``) and has it called; the second makes an array of objects, that is of pointers,
out of any bytes; a numpy type whose state comes from the file does the same through its flags. Here
these names stand for functions that do only what honest checkpoints need them for.
"""

import re
from pickle import UnpicklingError
from typing import Any

import numpy as np

#: What the name ``numpy.ndarray`` stands for: an argument of ``_reconstruct``, not to be called.
_ARRAY = object()

#: The methods that every history buffer carries in its state.
_STATISTICS = ('min', 'max', 'current', 'mean')


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """In place of numpy's function of that name: an empty array, its state follows."""
    if kind is not _ARRAY:
        raise UnpicklingError('GLOBAL numpy._reconstruct is for arrays')
    return np.empty(0, np.int8)


def _dtype(code: Any, *_: Any) -> np.dtype:
    """In place of ``numpy.dtype``: numbers of this machine's byte order.

    Always numpy's own instance, which takes no state: that of a copy would overwrite its flags.
    """
    if not (isinstance(code, str) and re.fullmatch(r'[biufc]\d{1,2}', code)):
        raise UnpicklingError('GLOBAL numpy.dtype is for numbers')
    return np.dtype(code)


def _scalar(dtype: Any, content: Any) -> Any:
    """In place of numpy's ``scalar``."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise UnpicklingError('GLOBAL numpy.scalar is for numbers')
    return np.frombuffer(content, dtype, count=1)[0]


#: For ``torch.serialization.safe_globals``: (object, name in the pickle), or the object alone. A
#: name without a dot cannot occur in a pickle: such types may be given their state, no more.
_ALWAYS = (
    slice,
    bytes,  # an empty array holds bytes()
    (_ARRAY, 'numpy.ndarray'),
    (_dtype, 'numpy.dtype'),
    # numpy.core: files of numpy 1
    *((_reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('_core', 'core')),
    *((_scalar, f'numpy.{core}.multiarray.scalar') for core in ('_core', 'core')),
    (np.ndarray, 'ndarray'),
    *((kind, kind.__name__) for kind in {type(np.dtype(code)) for code in '?bBhHiIlLqQefdgFDG'}),
)


def safe_globals(histories: bool) -> list:
    """What ``torch.serialization.safe_globals`` is given.

    Args:
        histories: Allow mmengine's history buffers too, which imports mmengine.
    """
    if not histories:
        return list(_ALWAYS)
    from mmengine.logging import HistoryBuffer

    def _getattr(owner: Any, name: Any) -> Any:
        """In place of ``getattr``: methods of a history buffer."""
        if owner is not HistoryBuffer or name not in _STATISTICS:
            raise UnpicklingError('GLOBAL builtins.getattr is for statistics of history buffers')
        return getattr(owner, name)

    return [*_ALWAYS, HistoryBuffer, (_getattr, 'builtins.getattr')]
