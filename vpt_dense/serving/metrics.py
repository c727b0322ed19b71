"""Counts of a server, as Prometheus reads them."""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What a server counts.

    Args:
        cache: Gives ``hits``, ``misses``, ``tasks`` and ``bytes`` of the tasks in memory.
    """

    def __init__(self, cache: Callable[[], dict[str, int]]) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            'vpt_dense_requests', 'Requests that were answered.', ['route', 'status'], registry=own)
        self.seconds = Histogram(
            'vpt_dense_request_seconds', 'From the first byte of a request to its answer.',
            ['route'], buckets=_SECONDS, registry=own)
        self.batch = Histogram(
            'vpt_dense_batch_size', 'Pairs (image, task) that were computed together.',
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=own)
        self.batch_tasks = Histogram(
            'vpt_dense_batch_tasks', 'Tasks of a batch.',
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=own)
        self.compute = Histogram(
            'vpt_dense_batch_seconds', 'Computing a batch.', buckets=_SECONDS, registry=own)
        self.predictions = Counter(
            'vpt_dense_predictions', 'Images that a task predicted.', ['task'], registry=own)
        self.queue = Gauge('vpt_dense_queue', 'Pairs (image, task) that wait.', registry=own)
        self.open = Gauge('vpt_dense_open_requests', 'Requests that are answered now.',
                          registry=own)  # fmt: skip
        self.tasks = Gauge('vpt_dense_tasks', 'Tasks that can be asked for.', registry=own)
        self.broken = Gauge(
            'vpt_dense_broken_tasks', 'Files of the folder that could not be loaded.', registry=own)
        self.loads = Counter(
            'vpt_dense_task_loads', 'Files that were loaded, or refused, since the start.',
            ['result'], registry=own)
        own.register(_Cache(cache))

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus (version 0.0.4)."""
        return generate_latest(self._registry)


class _Cache:
    """Asks for what the cache has done when it is read."""

    def __init__(self, cache: Callable[[], dict[str, int]]) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Any]:
        told = self._cache()
        for key in ('hits', 'misses'):
            yield CounterMetricFamily(
                f'vpt_dense_cache_{key}', f'{key.capitalize()} of the cache of tasks.', told[key])
        yield GaugeMetricFamily(
            'vpt_dense_cache_bytes', 'Tensors of tasks in memory.', told['bytes'])
        yield GaugeMetricFamily('vpt_dense_cache_tasks', 'Tasks in memory.', told['tasks'])
