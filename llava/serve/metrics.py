"""The metrics that /metrics shows, in Prometheus's format."""

from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from llava.serve.engine import Engine


class Metrics:
    """The metrics of a server and its engine."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files
        options: dict[str, Any] = {"namespace": "llava", "registry": self.registry}
        self.requests = Counter("requests", "Chat requests by HTTP status.", ["status"], **options)
        self.cancelled = Counter("cancelled", "Requests whose client disconnected.", **options)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts, with visual ones.", **options)
        self.new_tokens = Counter("new_tokens", "Generated tokens.", **options)
        self.batch_size = Histogram(
            "batch_size", "Requests in a batch.", buckets=[2**n for n in range(8)], **options
        )
        self.first_token = Histogram(
            "first_token_seconds", "Seconds from a request to its first text.", **options
        )
        self.duration = Histogram(
            "request_seconds", "Seconds from a request to the end of its answer.", **options
        )
        for name in ("open", "waiting", "running"):
            gauge = Gauge(f"requests_{name}", f"Requests that are {name} now.", **options)
            gauge.set_function(partial(getattr, engine, f"num_{name}"))
        engine.on_batch = self.batch_size.observe
