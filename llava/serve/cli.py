"""Chat with a model about pictures, in a terminal.

Between the questions:
  /image PATH   add a picture to the next question
  /tokens N     use N visual tokens, for example 64, for each view of a picture from now on
  /reset        begin a new conversation, without pictures
  /help         print this list
  /exit         end the program; Ctrl-D does so too
Ctrl-C stops an answer.
"""

import argparse
import sys
from contextlib import closing, suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path

from llava.command import Parser, exit_code
from llava.decoding import Decoding
from llava.errors import UserError
from llava.fetch import ADDRESSES, fetch
from llava.inference import MODEL, SAMPLING, add_flags, load_by_flags

COMMANDS = __doc__.partition("\n\n")[2].strip()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m llava.serve.cli", description=__doc__)
    add_flags(parser, *MODEL, *SAMPLING, "--max-new-tokens", temperature=0.2)
    add = parser.add_argument
    add(
        "--image-file",
        nargs="+",
        action="extend",
        default=[],
        metavar="IMAGE",
        help="paths or http addresses of pictures for the first question",
    )
    add("--debug", action="store_true", help="print each prompt, and the tokens and time of its answer")
    return parser.parse_args(argv)


def read_image(source: str):
    """Load a picture from a path or an address as an RGB PIL image. Raises UserError if there is none."""
    from llava.mm_utils import load_image

    if not source.startswith(ADDRESSES):
        if not Path(source).is_file():
            raise UserError(f"{source} does not exist; give the path of a picture.")
        return load_image(source)
    file = BytesIO(fetch(source))
    file.name = source  # the name that errors show
    return load_image(file)


def run(args: argparse.Namespace) -> None:
    """Load the model, then chat until the input ends.

    Raises UserError for problems that the user can fix before the conversation; the message says how.
    """
    decoding = Decoding(args.temperature, args.top_p, max_new_tokens=args.max_new_tokens)
    images = [read_image(source) for source in args.image_file]

    from llava.serve.chat import Chat

    chat = Chat(load_by_flags(args))
    for image in images:
        chat.add_image(image)
    converse(chat, decoding, args.debug)


def converse(chat, decoding, debug: bool) -> None:
    """Read lines until the input ends; run commands and answer questions."""
    with suppress(ImportError):
        import readline  # noqa: F401  # input() then has a history and arrow keys
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes of another encoding become U+FFFD

    while True:
        try:
            line = input("USER: ").strip()
            if line == "/exit":
                return
            if line.startswith("/"):
                obey(line, chat)
            elif line:
                answer(line, chat, decoding, debug)
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D ends the program)")
        except EOFError:
            print()
            return
        except UserError as error:
            print(f"error: {error}", flush=True)


def obey(line: str, chat) -> None:
    """Run a command, which is a line that starts with a slash. Raises UserError if it is not known."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if command == "/image":
        show(argument, chat)
    elif command == "/tokens":
        if not argument.isdecimal():
            raise UserError(f"/tokens needs a number of visual tokens, for example 64, got {argument!r}.")
        chat.set_visual_tokens(int(argument))
        print(f"({argument} visual tokens for each view of a picture)")
    elif line == "/reset":
        chat.reset()
        print("(a new conversation)")
    elif line == "/help":
        print(COMMANDS)
    else:
        raise UserError(f"{line} is not a command:\n{COMMANDS}")


def show(path: str, chat) -> None:
    """Add a picture to the next question; its path may be quoted or start with ~."""
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    if not path:
        raise UserError("/image needs the path of a picture.")
    if path.startswith(ADDRESSES):
        raise UserError("/image needs a file; only --image-file accepts web addresses.")
    chat.add_image(read_image(str(Path(path).expanduser())))
    print(f"({len(chat.waiting)} picture(s) will be sent with the next question)")


def answer(question: str, chat, decoding, debug: bool) -> None:
    """Print the answer as it comes; Ctrl-C stops it and keeps the text so far."""
    print("ASSISTANT: ", end="", flush=True)
    try:
        with closing(chat.ask(question, decoding)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", flush=True)
    except UserError:
        print(flush=True)
        raise
    if debug:
        print(f"prompt: {chat.prompt(chat.turns)!r}\n{chat.timing}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return exit_code(lambda: run(args))
    except KeyboardInterrupt:  # while the model loads
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
