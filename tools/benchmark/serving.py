"""``vpt-dense serve`` under load, on this machine's loopback: throughput, latency, wrong answers.

``python tools/benchmark/serving.py`` (8 tasks of one server beside 8 servers of one task each, at
1, 4, 16 and 64 clients)
``python tools/benchmark/serving.py --soak 5`` (mixed load for 5 minutes, in which tasks come,
change and go; each answer is compared with that of its task alone)

Weights are random; deltas are files, as vpt_dense.save_delta writes them. Clients keep their
connections, and send the next image when they have the answer to the last.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import vpt_dense
from vpt_dense import outputs, tables
from vpt_dense.errors import ArgumentParser, UserError, count, main
from vpt_dense.serving import keys

#: The methods of the tasks, in turn; every second task is a segmentor.
METHODS = ('deep', 'lora', 'bias', 'ssf')
KEY = 'of-the-benchmark'
#: Two answers are the same within this: products are summed in another order.
TOLERANCE = 1e-4


class Answer(NamedTuple):
    """An answer of a server; status 0: there was none."""

    status: int
    body: bytes
    seconds: float


class Client:
    """A connection that is kept.

    Args:
        port: Of the server.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b'', kind: str = '') -> Answer:
        """Send a request and read the answer."""
        begun = time.perf_counter()
        head = (f'{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n'
                f'Content-Length: {len(body)}\r\n')
        if kind:
            head += f'Content-Type: {kind}\r\n'
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection('127.0.0.1', self.port)
            reader, writer = self._streams
            writer.write(head.encode() + b'\r\n' + body)
            await writer.drain()
            lines = (await reader.readuntil(b'\r\n\r\n')).decode().lower().split('\r\n')
            headers = dict(line.split(': ', 1) for line in lines[1:] if ': ' in line)
            content = await reader.readexactly(int(headers.get('content-length', 0)))
            status = int(lines[0].split()[1])
            if headers.get('connection') == 'close':
                self.close()
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return Answer(0, b'', time.perf_counter() - begun)
        return Answer(status, content, time.perf_counter() - begun)

    async def predict(self, task: str, image: bytes) -> Answer:
        """Ask for a prediction."""
        body = (b'--limit\r\nContent-Disposition: form-data; name="images"; filename="x.png"'
                b'\r\n\r\n' + image + b'\r\n--limit--\r\n')
        return await self.ask('POST', f'/v1/predict?task={task}', body,
                              'multipart/form-data; boundary=limit')  # fmt: skip

    def close(self) -> None:
        """Leave the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Served:
    """A server's process.

    Args:
        folder: Of its tasks.
        file: Of its keys.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'vpt_dense', 'serve', '--tasks', str(folder), '--port', '0',
             '--keys', str(file), '--queue', '256'], stdout=subprocess.DEVNULL, stderr=self.log)
        self.port = 0

    def wait(self) -> None:
        """Wait until it is ready.

        Raises:
            UserError: If it ends instead.
        """
        until = time.monotonic() + 900
        while not self.port:
            for line in self.lines():
                if line.get('event') == 'ready':
                    self.port = int(line['url'].rpartition(':')[2])
            if self.process.poll() is not None or time.monotonic() > until:
                raise UserError(f'the server did not start: {self.lines()[-1:]}')
            time.sleep(0.1)

    def lines(self) -> list[dict]:
        """What it has logged."""
        self.log.seek(0)
        rows = []
        for line in self.log.read().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def memory(self, kind: str = 'Pss') -> float:
        """MB that it holds.

        Args:
            kind: ``Pss``, with its share of what processes have in common; ``Anonymous``, without
                files in memory, which does not change when other processes end.
        """
        text = Path(f'/proc/{self.process.pid}/smaps_rollup').read_text()
        return int(text.split(f'{kind}:')[1].split()[0]) * 1024 / 1e6

    def end(self) -> int:
        """End it; its exit code."""
        self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def serving(folders: list[Path], file: Path) -> Iterator[list[Served]]:
    """Servers of folders, while they are needed."""
    servers = []
    try:
        for folder in folders:
            servers.append(Served(folder, file))
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.end()


def make_task(args: argparse.Namespace, base: Path, number: int, seed: int, path: Path) -> None:
    """Write a delta: a segmentor where the number is odd, what is tuned at random."""
    options = dict(pretrained=True, checkpoint=str(base), img_size=args.img_size)
    create = vpt_dense.create_segmentor if number % 2 else vpt_dense.create_classifier
    model = create(args.model, 10, METHODS[number % len(METHODS)], **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 1.0 if name.startswith('head') else 0.02
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    vpt_dense.save_delta(model, path)


def make_images(args: argparse.Namespace) -> list[bytes]:
    """Four images, as PNG."""
    found = []
    for seed in range(4):
        cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(cells).resize((args.img_size, args.img_size), 2).save(stream, 'PNG')
        found.append(stream.getvalue())
    return found


# --- throughput and latency


async def load(
    ports: dict[str, int], images: list[bytes], clients: int, seconds: float
) -> tuple[list[float], Counter, float]:
    """Clients that ask all the time, task after task.

    Returns:
        Seconds of each answer, how many had which status, seconds of the whole.
    """
    times: list[float] = []
    statuses: Counter = Counter()
    begun = time.perf_counter()

    async def client(number: int) -> None:
        names = sorted(ports)
        own = {port: Client(port) for port in set(ports.values())}
        turn = number
        while time.perf_counter() - begun < seconds:
            name = names[turn % len(names)]
            answer = await own[ports[name]].predict(name, images[turn % len(images)])
            statuses[answer.status] += 1
            if answer.status == 200:
                times.append(answer.seconds)
            turn += 1
        for each in own.values():
            each.close()

    await asyncio.gather(*map(client, range(clients)))
    return times, statuses, time.perf_counter() - begun


def measure(args: argparse.Namespace, folder: Path, file: Path) -> list[dict]:
    """One server of all tasks, then a server of each, at numbers of clients."""
    images, rows = make_images(args), []
    names = sorted(path.stem for path in (folder / 'tasks').iterdir())
    apart = []
    for name in names:
        apart.append(folder / 'apart' / name)
        apart[-1].mkdir(parents=True)
        os.link(folder / 'tasks' / f'{name}.safetensors', apart[-1] / f'{name}.safetensors')
    for told, folders in (('one server', [folder / 'tasks']), (f'{len(names)} servers', apart)):
        with serving(folders, file) as servers:
            ports = {name: servers[i % len(servers)].port for i, name in enumerate(names)}
            asyncio.run(load(ports, images, 4, 2.0))  # warms up
            for clients in args.clients:
                times, statuses, seconds = asyncio.run(load(ports, images, clients, args.seconds))
                if set(statuses) != {200}:
                    raise UserError(f'{told}, {clients} clients: answers of status {statuses}')
                quantiles = np.percentile(times, (50, 95, 99)) * 1000
                rows.append(dict(
                    servers=told, clients=clients, per_second=len(times) / seconds,
                    p50=quantiles[0], p95=quantiles[1], p99=quantiles[2],
                    mb=sum(server.memory() for server in servers)))
                print(', '.join(f'{key} {value:.4g}' if isinstance(value, float) else str(value)
                                for key, value in rows[-1].items()), file=sys.stderr, flush=True)
    return rows


# --- soak


class Right(NamedTuple):
    """What a task alone predicts.

    Attributes:
        values: Probabilities, or labels.
        sure: Of labels, where the two best scores are not the same up to rounding.
    """

    values: np.ndarray
    sure: np.ndarray


def expected(path: Path, image: bytes, folder: Path) -> Right:
    """What the task of a file predicts alone."""
    (folder / 'image.png').write_bytes(image)
    model = vpt_dense.load(path)
    values = model.predict(str(folder / 'image.png')).numpy()
    sure = np.ones(values.shape, bool)
    if values.ndim == 2:
        with torch.no_grad():
            best = model(model.normalise(str(folder / 'image.png')))[0].topk(2, dim=0).values
        sure = (best[0] - best[1] > TOLERANCE).numpy()
    return Right(values, sure)


def gap(body: bytes, wanted: list[Right]) -> float:
    """How far an answer is from that of the nearest version.

    Returns:
        Of labels the share of pixels that differ, of probabilities the greatest difference.
    """
    (result,) = json.loads(body)['results']
    if result['kind'] == 'segmentation':
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(result['labels_png']))))
        gaps = [(found != each.values)[each.sure].mean() for each in wanted
                if found.shape == each.values.shape]  # fmt: skip
    else:
        scores = {each['class']: each['score'] for each in result['scores']}
        found = np.array([scores[str(i)] for i in range(len(scores))])
        gaps = [np.abs(found - each.values).max() for each in wanted
                if found.shape == each.values.shape]  # fmt: skip
    return float(min(gaps, default=1.0))


async def soak(
    args: argparse.Namespace, server: Served, images: list[bytes],
    answers: dict[str, list[list[Right]]], files: dict[str, list[bytes]], folder: Path,
) -> Counter:
    """Mixed load in which tasks change.

    Args:
        args: Of the command line.
        server: It.
        images: What clients send.
        answers: Task -> image -> of each of its versions the answer.
        files: Tasks that come, change and go -> their versions.
        folder: The server's.

    Returns:
        How many answers were right, wrong, lost, ...
    """
    counts: Counter = Counter()
    until = time.monotonic() + 60 * args.soak

    kinds = {name: rights[0][0].values.ndim == 2 for name, rights in answers.items()}

    async def client(number: int) -> None:
        own, turn, names = Client(server.port), number, sorted(answers)
        while time.monotonic() < until:
            name, image = names[turn % len(names)], turn // len(names) % len(images)
            answer = await own.predict(name, images[image])
            turn += 1
            if answer.status == 200:
                found = gap(answer.body, answers[name][image])
                right = found <= (0 if kinds[name] else TOLERANCE)
                counts['right' if right else 'wrong'] += 1
                if not right:
                    print(f'{name}, image {image}: off by {found:.3g}', file=sys.stderr, flush=True)
            elif answer.status == 0:
                counts['lost'] += 1
            elif answer.status == 404 and name in files:
                counts['no such task (removed)'] += 1
            elif answer.status == 429:
                counts['told to come again'] += 1
                await asyncio.sleep(0.2)
            else:
                counts[f'status {answer.status}'] += 1
        own.close()

    async def changes() -> None:
        """Adds, replaces and removes tasks, by requests and in the folder."""
        own, turn = Client(server.port), 0
        while time.monotonic() < until:
            for name, versions in files.items():
                turn += 1
                content = versions[turn % len(versions)]
                if turn % 3 == 2:
                    (folder / f'.{name}').write_bytes(content)
                    os.replace(folder / f'.{name}', folder / f'{name}.safetensors')
                    counts['files put into the folder'] += 1
                else:
                    answer = await own.ask('PUT', f'/v1/tasks/{name}', content)
                    counts['PUT' if answer.status in (200, 201) else f'PUT {answer.status}'] += 1
                await asyncio.sleep(0.5)
                if turn % 2:
                    answer = await own.ask('DELETE', f'/v1/tasks/{name}')
                    counts['DELETE' if answer.status in (200, 404) else 'DELETE failed'] += 1
                await asyncio.sleep(0.5)
        own.close()

    await asyncio.gather(changes(), *map(client, range(args.soak_clients)))
    return counts


def run_soak(args: argparse.Namespace, folder: Path, base: Path, file: Path) -> list[dict]:
    """Prepare what is right, then put the server under load."""
    images = make_images(args)
    tasks = folder / 'tasks'
    paths = {path.stem: [path] for path in sorted(tasks.iterdir())}
    files: dict[str, list[bytes]] = {}
    for k, name in enumerate(list(paths)[:2]):
        other = folder / f'{name}-2.safetensors'
        make_task(args, base, k, 1000 + k, other)
        paths[name].append(other)
        files[name] = [path.read_bytes() for path in paths[name]]
    answers = {name: [[expected(path, image, folder) for path in versions] for image in images]
               for name, versions in paths.items()}  # fmt: skip
    with serving([tasks], file) as (server,):
        ports = dict.fromkeys(answers, server.port)
        asyncio.run(load(ports, images, args.soak_clients, 3.0))
        before = server.memory('Anonymous')
        counts = asyncio.run(soak(args, server, images, answers, files, tasks))
        after = server.memory('Anonymous')
        counts['MB before'], counts['MB after'] = round(before), round(after)
        counts['exit code'] = server.end()
    for name in ('right', 'wrong', 'lost'):
        counts[name] += 0
    return [dict(what=name, number=number) for name, number in counts.items()]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--model', default='deit_tiny_patch16_224', help="timm's name (default: DeiT-Ti/16)")
    add('--img-size', type=count, default=224)
    add('--tasks', type=count, default=8)
    add('--clients', type=count, nargs='+', default=[1, 4, 16, 64])
    add('--seconds', type=float, default=10.0, help='of each number of clients')
    add('--soak', type=float, metavar='MINUTES', help='mixed load with changes instead')
    add('--soak-clients', type=count, default=8)
    add('--json', type=outputs.new_file, metavar='FILE', help='also write all figures here')
    args = parser.parse_args()
    if not 0 < args.seconds <= 600 or not 0 < (args.soak or 1) <= 24 * 60:
        raise UserError('--seconds must be from 0 to 600, --soak at most a day')
    return args


def run() -> None:
    """Measure, and print a table."""
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix='vpt-dense-serving-') as name:
        folder = Path(name)
        (folder / 'tasks').mkdir()
        base = folder / 'base.pth'
        torch.manual_seed(0)
        plain = vpt_dense.create_backbone(
            args.model, 'head', pretrained=False, img_size=args.img_size)
        torch.save(plain.state_dict(), base)
        for k in range(args.tasks):
            make_task(args, base, k, k, folder / f'tasks/task{k}.safetensors')
        file = folder / 'keys.json'
        file.write_text(json.dumps({keys.digest(KEY.encode()): 'admin'}))
        if args.soak:
            rows = run_soak(args, folder, base, file)
        else:
            rows = measure(args, folder, file)
    header = list(rows[0])
    print(tables.markdown(header, [
        [f'{each:,.1f}' if isinstance(each, float) else str(each) for each in row.values()]
        for row in rows]))
    print(f'{args.model}, {args.img_size} pixels, {args.tasks} tasks; {os.cpu_count()} CPUs, '
          f'Python {platform.python_version()}, torch {torch.__version__}')
    if args.json:
        args.json.write_text(json.dumps(dict(rows=rows, torch=torch.__version__), indent=1))


if __name__ == '__main__':
    main(run)
