"""The server as an application of Ray Serve: replicas on the machines of a cluster.

``deploy/ray/serve.yaml`` starts it; Ray calls :func:`vpt_dense.serving.ray_app.build` with its
``args``.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from vpt_dense.errors import UserError
from vpt_dense.serving import app as apps
from vpt_dense.serving.guard import Message
from vpt_dense.serving.settings import Settings, read

#: What a configuration calls the deployment, to say how many replicas it has.
NAME = 'VptDense'
#: Seconds that a replica has for its last answers beyond ``timeout``.
_MORE_SECONDS = 5


class _Replica:
    """The server's ASGI application in a replica.

    Args:
        settings: Of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self._spool = tempfile.TemporaryDirectory(prefix='vpt-dense-serve-')
        self._guard = apps.build(settings, Path(self._spool.name))

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer a request; the counts of one replica of many would be taken for those of all."""
        if scope['type'] == 'http' and scope['path'] == '/metrics':
            answer = JSONResponse(dict(
                error='on Ray Serve each replica would answer for itself alone: see the metrics of '
                'Ray (ray_serve_...)'), 404)  # fmt: skip
            await answer(scope, receive, send)
            return
        await self._guard(scope, receive, send)


def build(args: Mapping[str, Any]) -> Any:
    """The application, as Ray Serve has it.

    Every replica has the backbone and all tasks, and looks at the same folder. A replica takes as
    many requests as may wait in it (``queue``), so that it forms batches and refuses what is too
    much as the server does. It may be given another number, as well as replicas and machines, where
    the configuration names the deployment, ``VptDense``.

    Args:
        args: Options of ``vpt-dense serve`` with ``_`` for ``-``, but ``host`` and ``port``, which
            are Ray's. Paths are absolute, and the same on all machines.

    Returns:
        ``ray.serve.Application``.

    Raises:
        UserError: If an option is wrong, or Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise UserError("it needs Ray Serve: pip install 'vpt-dense[ray,serve]' (docs/serving.md)"
                        ) from error  # fmt: skip
    for name in ('host', 'port'):
        if name in args:
            raise UserError(f'{name} is one of http_options, for Ray')
    settings = read(args)
    for name in ('tasks', 'keys', 'base', 'graph', 'samples'):
        path = args.get(name)
        if path is not None and not Path(path).is_absolute():
            raise UserError(f'{name}: {path} must be an absolute path, as replicas run elsewhere')

    def application() -> _Replica:
        return _Replica(settings)

    deployment = serve.deployment(
        serve.ingress(application)(), name=NAME, max_ongoing_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.timeout + _MORE_SECONDS)
    return deployment.bind()
