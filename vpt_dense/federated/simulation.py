"""A federation whose clients are processes of this machine: ``flwr run`` and what it needs."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from vpt_dense.errors import UserError

#: Seconds that Flower's server has to be there.
_PATIENCE = 60.0


def program(name: str) -> str:
    """The path of a program of Flower, of this interpreter's environment before others.

    Raises:
        UserError: If it is not installed.
    """
    here = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([here, os.environ.get('PATH', '')]))
    if found is None:
        raise UserError(
            f'{name} is not there: install Flower in an environment of its own, '
            "pip install 'vpt-dense[federated]' (docs/federated.md)")
    return found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def link() -> Iterator[dict[str, str]]:
    """Flower's SuperLink on this machine alone, which ends with the context.

    ``flwr run`` alone would start one that stays. No usage data are sent.

    Yields:
        The environment for :func:`run`.

    Raises:
        UserError: If Flower is not installed, or it does not start.
    """
    command, _ = program('flower-superlink'), program('flwr')
    ports = [_free_port(), _free_port()]
    with tempfile.TemporaryDirectory(prefix='vpt_dense_flower_') as home:
        Path(home, 'config.toml').write_text(
            '[superlink]\ndefault = "here"\n[superlink.here]\n'
            f'address = "127.0.0.1:{ports[0]}"\ninsecure = true\n', encoding='utf-8')
        folders = [str(Path(command).parent), os.environ.get('PATH', '')]
        env = dict(
            os.environ, FLWR_HOME=home, FLWR_TELEMETRY_ENABLED='0', FLWR_DISABLE_UPDATE_CHECK='1',
            RAY_USAGE_STATS_ENABLED='0', PATH=os.pathsep.join(folders),
            OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', '1'))
        log = Path(home, 'superlink.log')
        with log.open('wb') as stream:
            process = subprocess.Popen(
                [command, '--insecure', '--simulation', '--host', '127.0.0.1', '--port',
                 str(ports[0]), '--control-api-address', f'127.0.0.1:{ports[1]}',
                 '--disable-runtime-dependency-installation'],
                stdout=stream, stderr=stream, env=env, start_new_session=True)  # fmt: skip
        try:
            _wait(process, ports[0], log)
            yield env
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen, port: int, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(('127.0.0.1', port)) == 0:
                return
        time.sleep(0.2)
    last = log.read_text(errors='replace').strip().splitlines()[-1:]
    raise UserError(f"Flower's flower-superlink did not start: {' '.join(last)}")


def run(
    folder: Path, clients: int, env: Mapping[str, str], jobs: int = 1, gpus: float = 0.0,
    overrides: str = '', log: Path | None = None,
) -> None:  # fmt: skip
    """Run an app and wait for its end.

    Args:
        folder: With ``pyproject.toml``.
        clients: Of the federation.
        env: Of :func:`link`.
        jobs: Clients that train at a time.
        gpus: Share of a GPU for each.
        overrides: ``KEY=VALUE`` of the app's config.
        log: Gets what Flower prints; None: it is printed.

    Raises:
        UserError: If Flower cannot start it. What the app says lies in its own folder.
    """
    settings = (f'num-supernodes={clients} client-resources-num-cpus=1 '
                f'client-resources-num-gpus={gpus} init-args-num-cpus={jobs}')
    command = [program('flwr'), 'run', str(folder), '--stream', '--federation-config', settings]
    if overrides:
        command += ['--run-config', overrides]
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(log.open('ab')) if log else None
        done = subprocess.run(command, env=dict(env), stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise UserError(f'flwr run {folder} failed{f", see {log}" if log else ""}')
