"""The API as a Ray Serve application: replicas over machines, their number following the load.

`serve run llava.serve.ray_app:app`, configured by environment variables (docs/serving_api.md).
"""

import os
import shlex

from ray import serve

from llava.errors import UserError
from llava.serve.api import build_parser, load_app

ARGS = "LLAVA_API_ARGS"  # flags of python -m llava.serve.api; --host and --port are Ray's own


def replica_options(environment: dict[str, str]) -> dict:
    """A deployment's options by LLAVA_{MIN,MAX}_REPLICAS, LLAVA_TARGET_REQUESTS, LLAVA_NUM_{CPUS,GPUS}.

    Raises UserError for a value that is no number, or replicas out of order.
    """
    least = int(_number(environment, "LLAVA_MIN_REPLICAS", 1))
    most = int(_number(environment, "LLAVA_MAX_REPLICAS", 1))
    if not 0 <= least <= most or most < 1:
        raise UserError(
            f"LLAVA_MIN_REPLICAS={least} and LLAVA_MAX_REPLICAS={most}: the first may not be above the "
            "second, which is at least 1."
        )
    max_requests = parse(environment).max_requests
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": _number(environment, "LLAVA_TARGET_REQUESTS", 8),
        },
        # one more than a replica admits: what is beyond is refused by the replica, with 429
        "max_ongoing_requests": max_requests + 1,
        "max_queued_requests": max_requests,
        "ray_actor_options": {
            "num_cpus": _number(environment, "LLAVA_NUM_CPUS", 1),
            "num_gpus": _number(environment, "LLAVA_NUM_GPUS", 0),
        },
    }


def parse(environment: dict[str, str]):
    """The flags in LLAVA_API_ARGS. Raises UserError if they are not there."""
    if not environment.get(ARGS):
        raise UserError(f'{ARGS} is not set; set it to the API\'s flags, such as "--model-path MODEL".')
    return build_parser(ARGS).parse_args(shlex.split(environment[ARGS]))


def _number(environment: dict[str, str], name: str, default: float) -> float:
    try:
        return float(environment.get(name, default))
    except ValueError:
        raise UserError(f"{name} must be a number, got {environment[name]!r}.") from None


def build(environment: dict[str, str]):
    """The application that Ray Serve runs."""
    args = parse(environment)
    # each replica calls this where it runs: a loaded model does not travel
    replica = serve.ingress(lambda: load_app(args))()
    return serve.deployment(name="llava", **replica_options(environment))(replica).bind()


app = build(dict(os.environ))
