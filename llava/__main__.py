"""All commands under one name. `visualprism COMMAND ...` is `python -m MODULE ...`.

visualprism eval --help             the page of a command
eval "$(visualprism completion)"    complete commands and flags; goes into ~/.bashrc, or into ~/.zshrc
                                    after `autoload -U bashcompinit && bashcompinit`
"""

import argparse
import runpy
import sys
from typing import NamedTuple

from llava.command import Parser, ending_with_reader


class Command(NamedTuple):
    """What a name runs: a module, the arguments that come ahead of the user's, and a line for --help."""

    module: str
    help: str
    first: tuple[str, ...] = ()

    @property
    def long_name(self) -> str:
        return " ".join(["python -m", self.module, *self.first])


COMMANDS = {
    "validate": Command("llava.data.validate", "check training records and their images"),
    "preflight": Command(
        "llava.benchmark", "check a machine, and forecast a run's memory and time", ("preflight",)
    ),
    "train": Command("llava.train.train_mem", "train a projector, adapters or a whole model"),
    "eval": Command("llava.eval.run", "answer and score a benchmark"),
    "chat": Command("llava.serve.cli", "chat with a model in the terminal"),
    "web": Command("llava.serve.web", "chat with a model on a web page that shows where its answer attends"),
    "serve": Command("llava.serve.api", "serve a model through OpenAI's chat completions API"),
    "export": Command("llava.export", "write a model as a folder that transformers and vLLM load"),
    "heatmap": Command("llava.visualization.heatmap", "draw where an answer's words attend in the image"),
    "prism": Command("llava.visualization.prism", "draw what the parts of a VisualPrism projector compute"),
    "benchmark": Command("llava.benchmark", "measure speed, memory and quality"),
}
# For bash; zsh can run it too. The flags of a command are read from its --help.
COMPLETION = """_visualprism() {
    local word=${COMP_WORDS[COMP_CWORD]} words
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        words="%s"
    elif [[ $word == -* ]]; then
        words=$(visualprism "${COMP_WORDS[1]}" --help 2> /dev/null |
            grep -oE -- '--[A-Za-z][A-Za-z0-9_-]*' | sort -u)
    else
        return  # a file's name
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _visualprism visualprism
"""


@ending_with_reader()
def main() -> None:
    parser = Parser(prog="visualprism", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    lines = [f"{name:12}{command.help} ({command.long_name})" for name, command in COMMANDS.items()]
    lines.append("completion  print a script that completes commands and flags in bash")
    names = [*COMMANDS, "completion"]
    parser.add_argument("command", metavar="COMMAND", choices=names, help="\n".join(lines))
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="arguments of the command")
    args = parser.parse_args()
    if args.command == "completion":
        print(COMPLETION % " ".join(names), end="")
        return
    command = COMMANDS[args.command]
    sys.argv = [command.module, *command.first, *args.arguments]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
