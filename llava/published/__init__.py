"""The commands that LLaVA, TokenPacker and VisualPrism published, under the names that users' scripts call.

Each command has a file of a few lines, which calls `main` of its entry in COMMANDS.
"""

from llava.published import answering, gone, scoring, submissions

COMMANDS = {command.module: command for command in (*answering.COMMANDS, *gone.COMMANDS)} | {
    command.name: command for command in (*scoring.COMMANDS, *submissions.COMMANDS)
}
