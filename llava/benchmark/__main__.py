"""python -m llava.benchmark COMMAND: what each choice costs and gives, side by side, in one run."""

from llava.benchmark import capture, gpu_report, loss, machine, packing, projectors
from llava.benchmark.ablation import command as ablation
from llava.benchmark.preflight import command as preflight
from llava.benchmark.speed import command as speed
from llava.benchmark.speed import training as step
from llava.command import Parser, exit_code

COMMANDS = {
    "machine": machine,
    "projectors": projectors,
    "packing": packing,
    "loss": loss,
    "capture": capture,
    "speed": speed,
    "step": step,
    "ablation": ablation,
    "gpu_report": gpu_report,
    "preflight": preflight,
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m llava.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.__doc__.splitlines()[0]))
    args = parser.parse_args(argv)
    return exit_code(lambda: args.run(args))


if __name__ == "__main__":
    raise SystemExit(main())
