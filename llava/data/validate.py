"""python -m llava.data.validate FILE...: name each bad record of training data, by the checks of training."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llava.command import Parser, message
from llava.errors import UserError


def validate(
    paths: Sequence[str],
    image_folder: str | None = None,
    version: str = "v1",
    check_images: bool = False,
    report: Callable[[str], None] = print,
) -> Counter:
    """Check files one record at a time.

    Args:
        paths: values that --data_path accepts.
        image_folder: the folder of images that are files of their own. None: these are not looked for; with
            check_images, their records are then bad.
        version: the name of the conversation template.
        check_images: read each image completely.
        report: is called with a message for each problem.
    Returns:
        The counts of "problems", and of good "records" with their "images" and "turns".
    Raises:
        UserError: for an unknown version, or shards that do not exist.
    """
    from llava.conversation import template_named
    from llava.data.record import BadRecord, image_files, turns_of
    from llava.data.sample import check_image_files, check_record, load_images
    from llava.data.shards import expand_shards, is_shards

    template_named(version, "--version")
    files = [file for path in paths for file in (expand_shards(path) if is_shards(path) else [path])]
    counts = Counter()

    def check(read: Callable[[], Any], where: str, source_of: Callable) -> None:
        record = read()
        check_record(record, where, version)
        if (image_folder is not None or check_images) and not is_shards(file):
            check_image_files(record, where, image_folder)
        if check_images:
            load_images(image_files(record), where, source_of)
        counts.update(records=1, images=len(image_files(record)), turns=len(turns_of(record)))

    def problem(error: UserError) -> None:
        counts["problems"] += 1
        report(str(error))

    for file in files:
        try:
            for entry in _records(file, image_folder):
                try:
                    check(*entry)
                except BadRecord as error:
                    problem(error)
        except UserError as error:  # for the file as a whole
            problem(error)
    return counts


def _records(file: str, image_folder: str | None) -> Iterator[tuple[Callable[[], Any], str, Callable]]:
    """Yield a function that reads a record, the record's description and a function that finds its images."""
    from llava.data.files import reader_of
    from llava.data.record import describe_record
    from llava.data.shards import is_shards, read_shard

    if is_shards(file):
        for sample in read_shard(file):
            yield sample.record, sample.name, sample.open
    else:
        reader = reader_of(file, image_folder)
        for index, (record, place) in enumerate(reader.scan()):
            yield (lambda kept=record: kept), describe_record(file, index, record), reader.source_of(place)  # type: ignore[misc]


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m llava.data.validate", description=__doc__)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a file or folder of records, as for --data_path in training"
    )
    parser.add_argument("--image_folder", help="folder to which the records' image paths are relative")
    parser.add_argument("--version", default="v1", help="conversation template")
    parser.add_argument("--check_images", action="store_true", help="read each image completely")
    args = parser.parse_args(argv)
    if args.check_images and not args.image_folder and any(".json" in file for file in args.files):
        parser.error("--check_images needs --image_folder for the records of JSON files")
    try:
        counts = validate(args.files, args.image_folder, args.version, args.check_images)
    except UserError as error:
        sys.exit(message(error, "validate"))
    print(
        f"{counts['records']} good records with {counts['images']} images and {counts['turns']} turns; "
        f"{counts['problems']} problems"
    )
    sys.exit(1 if counts["problems"] else 0)


if __name__ == "__main__":
    main()
