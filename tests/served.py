"""A server of tiny tasks on one backbone, in a thread."""

import contextlib
import json
import threading
import time
from pathlib import Path

import timm
import torch
from plain_models import FAMILIES, SMALL
from utils import randomise

import vpt_dense

OPTIONS = dict(img_size=64, model_options=SMALL, pretrained=True)


def write_base(folder: Path) -> Path:
    """A checkpoint of random weights, which the tasks share."""
    model = randomise(timm.create_model(FAMILIES['vit'], img_size=64, num_classes=0, **SMALL))
    torch.save(model.state_dict(), folder / 'base.pth')
    return folder / 'base.pth'


def write_task(file: Path, base: Path, classes: list[str], kind: str = 'segmentor', seed: int = 1):
    """A tuned model and its file."""
    build = getattr(vpt_dense, f'create_{kind}')
    model = build(FAMILIES['vit'], len(classes), 'deep', checkpoint=str(base), **OPTIONS)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(0, 0.5)
    vpt_dense.save_delta(model, file, classes=classes)
    return model.eval()


def write_tasks(folder: Path) -> dict[str, torch.nn.Module]:
    """Three tasks in ``folder/tasks``: 3 classes, 300 classes (16 bits), a classifier."""
    base, tasks = write_base(folder), folder / 'tasks'
    tasks.mkdir()
    many = [f'class {i}' for i in range(300)]
    return {
        'roads': write_task(tasks / 'roads.safetensors', base, ['ground', 'road', '<b>car</b>']),
        'many': write_task(tasks / 'many.safetensors', base, many, seed=2),
        'animal': write_task(
            tasks / 'animal.safetensors', base, ['cat', 'dog', 'eel', 'fox', 'gnu', 'hen'],
            'classifier', 3)}


@contextlib.contextmanager
def running(folder: Path, keys: dict[str, str] | None = None, **options):
    """The server; yields its URL.

    Args:
        folder: Of :func:`write_tasks`.
        keys: Key -> role.
    """
    import uvicorn

    from vpt_dense.serving import app
    from vpt_dense.serving import keys as key_files
    from vpt_dense.serving.settings import Settings

    if keys:
        (folder / 'keys.json').write_text(json.dumps(
            {key_files.digest(key.encode()): role for key, role in keys.items()}))
        options['keys'] = folder / 'keys.json'
    spool = folder / 'spool'
    spool.mkdir(exist_ok=True)
    guard = app.build(Settings(folder=folder / 'tasks', **options), spool)
    server = uvicorn.Server(uvicorn.Config(guard, port=0, log_level='warning', lifespan='on'))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join()
