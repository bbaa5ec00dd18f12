"""The commands that LLaVA, TokenPacker and VisualPrism published, by the names that scripts of others call.

Each name is a file of a few lines, which calls `main` of its entry in COMMANDS.
"""

from llava.published import answering, gone, scoring, submissions

COMMANDS = {command.module: command for command in (*answering.COMMANDS, *gone.COMMANDS)} | {
    command.name: command for command in (*scoring.COMMANDS, *submissions.COMMANDS)
}
