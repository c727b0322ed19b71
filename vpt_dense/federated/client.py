"""The client's side: Flower's ClientApp, ``vpt_dense.federated.client:app``."""

from collections.abc import Callable
from dataclasses import replace
from logging import ERROR
from pathlib import Path

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.supercore import log

from vpt_dense import safe_files
from vpt_dense.errors import UserError, explain
from vpt_dense.federated import moved
from vpt_dense.federated.settings import Client, Job, Settings

#: Where what is personal lies in a node's state, which Flower keeps between rounds.
PERSONAL = 'vpt_dense.personal'
#: And in its folder, where it stays when the federation has ended.
FILE = 'personal.safetensors'
#: The code of our errors; Flower's own are below.
REFUSED = 1000


def _answered(
    work: Callable[[Message, Settings, Client, Context], RecordDict],
) -> Callable[[Message, Context], Message]:
    """A handler whose errors become one line that the server tells."""

    def answer(message: Message, context: Context) -> Message:
        try:
            settings = Settings.read(context.run_config)
            client = settings.client(context.node_config)
            return Message(work(message, settings, client, context), reply_to=message)
        except Exception as error:
            if not isinstance(error, UserError):
                log(ERROR, 'client', exc_info=error)
            return Message(Error(REFUSED, explain(error)), reply_to=message)

    return answer


def _clipped(message: Message, context: Context, call_next: Callable) -> Message:
    """Flower's clipping on the client, where the settings ask for it."""
    mods = {'client-fixed': fixedclipping_mod, 'client-adaptive': adaptiveclipping_mod}
    mod = mods.get(str(context.run_config.get('privacy', '')))
    return mod(message, context, call_next) if mod else call_next(message, context)


app = ClientApp()


def _who(message: Message, settings: Settings, client: Client, context: Context) -> RecordDict:
    return RecordDict({'who': ConfigRecord({'name': client.name})})


def _train(message: Message, settings: Settings, client: Client, context: Context) -> RecordDict:
    from vpt_dense.federated import local

    config = message.content['config']
    wanted = moved.Kind.from_text(str(config['kind']))
    job = replace(settings.job, options=(*settings.job.options, *client.options))
    tensors = _received(message, settings, job, context, wanted)
    number = int(config['server-round']) + int(config['done'])
    trained = local.train(
        job, number, tensors, client.name, _folder(settings, client), client.list,
        wanted=wanted, proximal_mu=float(config.get('proximal-mu', 0.0)),
        share=list(config.get('group-share', ())))
    kept = moved.own(settings.personal, list(wanted.shapes))
    if kept:  # what is not finite must not stay: the client could never come back
        moved.check({n: t.numpy() for n, t in trained.tensors.items()}, wanted.shapes)
        safe_files.write_tensors(
            {n: trained.tensors[n] for n in kept}, _folder(settings, client) / FILE,
            dict(format='pt', round=str(number)))
        context.state[PERSONAL] = ArrayRecord({n: _array(trained.tensors[n]) for n in kept})
    sent = {name: _array(t) for name, t in trained.tensors.items() if name not in kept}
    metrics = MetricRecord({'num-examples': trained.images, 'clients': 1, 'loss': trained.loss,
                            'seconds': trained.seconds})
    if trained.counts:
        metrics['group-counts'] = list(trained.counts)
    return RecordDict({
        'arrays': ArrayRecord(sent),
        'metrics': metrics,
        'member': ConfigRecord({'kind': trained.kind.to_text()})})


def _test(message: Message, settings: Settings, client: Client, context: Context) -> RecordDict:
    """Test what the client has, its own part with it, on the images that it held out."""
    from vpt_dense.federated import local

    config = message.content['config']
    wanted = moved.Kind.from_text(str(config['kind']))
    job = replace(settings.job, options=(*settings.job.options, *client.options))
    tensors = _received(message, settings, job, context, wanted)
    if client.test is None:
        raise UserError('it held out no images: make the partition with --holdout 0.2')
    folder = _folder(settings, client)
    whole = local.Global(job, wanted.classes)
    moved.compare(whole.kind, wanted)
    file = Path(folder, 'last.pth')
    whole.write(tensors, file, int(config['server-round']) + int(config['done']))
    cfg = job.load()
    images = local.test_on_list(cfg, client.test)
    metrics = local.test(cfg, file, Path(folder, 'test'), wanted.classes)
    return RecordDict({'metrics': MetricRecord({
        'num-examples': images, 'clients': 1, 'score': metrics[local.headline(cfg)]})})


def _received(
    message: Message, settings: Settings, job: Job, context: Context, wanted: moved.Kind
) -> dict[str, torch.Tensor]:
    """All that trains: what came, and what the client kept; before that, what the seed draws."""
    tensors = _tensors(message.content['arrays'])
    if settings.personal:
        known = context.state.array_records.get(PERSONAL)
        if known is not None:
            tensors |= _tensors(known)
        else:
            from vpt_dense.federated import local

            start = moved.take(local.Global(job, wanted.classes).model)
            tensors |= {n: start[n] for n in moved.own(settings.personal, list(start))}
    return {name: tensors[name] for name in wanted.shapes if name in tensors}


def _tensors(record: ArrayRecord) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}


def _array(tensor: torch.Tensor) -> Array:
    return Array(tensor.numpy())


def _folder(settings: Settings, client: Client) -> Path:
    return Path(settings.out, 'clients', client.name)


app.query()(_answered(_who))
app.train(mods=[_clipped])(_answered(_train))
app.evaluate()(_answered(_test))
