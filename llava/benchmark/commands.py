"""The commands that each measure one thing, and the function that runs the one a command line names."""

from types import ModuleType

from llava.benchmark import capture, data, evaluation, loss, machine, packing, projectors, servers, sharing
from llava.benchmark.ablation import command as ablation
from llava.benchmark.speed import command as speed
from llava.benchmark.speed import training as step
from llava.command import Parser, exit_code

MEASURES = {
    "machine": machine,
    "projectors": projectors,
    "packing": packing,
    "sharing": sharing,
    "data": data,
    "loss": loss,
    "capture": capture,
    "speed": speed,
    "step": step,
    "ablation": ablation,
    "eval": evaluation,
    "servers": servers,
}


def call(commands: dict[str, ModuleType], argv: list[str] | None = None) -> int:
    """Run the command that `argv` names (None: the process's own arguments); return the exit code."""
    parser = Parser(
        prog="python -m llava.benchmark",
        description="Measures speed, memory and quality.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, module in commands.items():
        module.add_arguments(subparsers.add_parser(name, help=module.__doc__.splitlines()[0]))  # type: ignore[union-attr]
    args = parser.parse_args(argv)
    return exit_code(lambda: args.run(args))
