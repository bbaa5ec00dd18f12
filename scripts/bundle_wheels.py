"""Download the wheels that this package needs on another machine, for its Python and its platform.

    python scripts/bundle_wheels.py --extras quickstart,train --python 3.12 --platform manylinux_2_28_x86_64 \
        --torch 2.13.0 --installed installed.txt --output wheels

bundle.sh starts it. pip chooses the versions. For packages that the other machine has, no other version is
chosen and no wheel is written. pip evaluates markers (`; python_version < "3.11"`) for the Python that runs
it. So they are evaluated again for the other Python, and pip is run again until all requirements of the other
machine are met.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llava.command import Parser, message
from llava.errors import UserError

SOURCE_ONLY = ("deepspeed",)  # no wheels on the index; a wheel without compiled parts runs everywhere
# Maps each older platform name to the minor version of glibc 2 that its wheels need at least (PEP 600)
EARLIER_NAMES = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
OLDEST_GLIBC = 5


@dataclass(frozen=True)
class Machine:
    """The machine that gets the wheels. `installed` maps canonical package names to versions."""

    python: str
    platform: str
    installed: dict[str, str]

    def __post_init__(self):
        if not re.fullmatch(r"3\.\d+", self.python):
            raise UserError(f"--python must be a version like 3.12, got {self.python!r}.")
        if not re.fullmatch(r"manylinux_2_\d+_\w+", self.platform):
            raise UserError(
                "--platform must be like manylinux_2_28_x86_64 (glibc 2.28 or newer on an x86_64 processor)"
                f"; got {self.platform!r}."
            )

    def pip_flags(self) -> list[str]:
        """pip's flags. All platforms whose wheels run there are named, because pip takes no others."""
        _, _, minor, processor = self.platform.split("_", 3)
        platforms = [f"manylinux_2_{n}_{processor}" for n in range(int(minor), OLDEST_GLIBC - 1, -1)]
        platforms += [f"{name}_{processor}" for name, oldest in EARLIER_NAMES.items() if int(minor) >= oldest]
        platforms.append(f"linux_{processor}")
        flags = ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python]
        return flags + [word for platform in platforms for word in ("--platform", platform)]

    def marker_environment(self) -> dict[str, str]:
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.platform.split("_", 3)[3],
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def read_installed(file: Path) -> dict[str, str]:
    """Read lines NAME==VERSION of `pip list --format=freeze`: maps canonical names to versions.

    Raises UserError if a line has no version, which happens in the output of `pip freeze`.
    """
    if not file.is_file():
        raise UserError(f"--installed {file} does not exist; write it with `pip list --format=freeze`.")
    installed = {}
    for line in filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())):
        name, equals, version = line.partition("==")
        if line.startswith("#"):
            continue
        if not equals or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(
                f"--installed {file} has the line {line!r} without a version; "
                "write the file with `pip list --format=freeze`."
            )
        installed[_canonical(name)] = version
    return installed


def project_requirements(project: dict, extras: list[str], machine: Machine) -> list:
    """The requirements of pyproject.toml's [project] on a machine, and of extras that an extra names."""
    from pip._vendor.packaging.requirements import Requirement

    known = project["optional-dependencies"]
    if unknown := sorted(set(extras) - set(known)):
        raise UserError(f"--extras {','.join(unknown)} is unknown; choose from {', '.join(known)}.")
    found = []
    for text in project["dependencies"] + [text for extra in extras for text in known[extra]]:
        requirement = Requirement(text)
        if not _applies(requirement, "", machine):
            continue
        if requirement.name == project["name"]:
            found += project_requirements(project, sorted(requirement.extras), machine)
        else:
            found.append(requirement)
    return found


def _check_installed(requirements: list, machine: Machine) -> None:
    for requirement in requirements:
        version = machine.installed.get(_canonical(requirement.name))
        if version and not requirement.specifier.contains(version, prereleases=True):
            raise UserError(
                f"--installed has {requirement.name}=={version}, "
                f"but {_without_marker(requirement)} is needed; leave that line out, "
                "and a suitable version is packed."
            )


def fetch_wheels(requirements: list, machine: Machine, work: Path) -> list[Path]:
    """Download wheels that meet the requirements on a machine, and wheels for what these wheels require.

    Args:
        requirements: Requirement objects of `packaging`; their markers are ignored.
        work: an empty folder.
    Returns:
        The wheels that the machine lacks, in a subfolder of `work`.
    Raises:
        UserError: if pip finds none; pip's own message is printed before.
    """
    constraints = _write_stand_ins(machine.installed, work / "installed")
    flags = [*machine.pip_flags(), "--constraint", str(constraints), "--find-links", str(work / "built")]
    _build([r for r in requirements if _canonical(r.name) in SOURCE_ONLY], machine, work / "built")
    asked = list(requirements)
    for attempt in range(10):
        folder = work / f"wheels-{attempt}"
        words = [_without_marker(requirement) for requirement in asked]
        _pip("download", "--dest", str(folder), *flags, *dict.fromkeys(words))
        wheels = {_canonical(_metadata(path).name): path for path in folder.glob("*.whl")}
        needed, unmet = _follow(requirements, wheels, machine)
        if not unmet:
            return [wheels[name] for name in sorted(needed)]
        asked += unmet
    raise AssertionError(f"still unmet: {unmet}")


def _follow(requirements: list, wheels: dict[str, Path], machine: Machine) -> tuple[set[str], list]:
    """Walk from the requirements through those of each wheel: (wheels needed, requirements unmet)."""
    from pip._vendor.packaging.requirements import Requirement

    needed, unmet, seen = set(), [], set()
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        name = _canonical(requirement.name)
        metadata = _metadata(wheels[name]) if name in wheels else None
        if metadata is None or not requirement.specifier.contains(metadata.version, prereleases=True):
            unmet.append(requirement)
            continue
        if name in machine.installed:
            continue
        needed.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            required = map(Requirement, metadata.requires or [])
            queue += [other for other in required if _applies(other, extra, machine)]
    return needed, unmet


def _write_stand_ins(installed: dict[str, str], folder: Path) -> Path:
    """Write an empty wheel without requirements for each installed package: the index need not have it.

    Returns:
        A constraints file that makes pip use these wheels.
    """
    folder.mkdir()
    lines = []
    for name, version in installed.items():
        stem = f"{name.replace('-', '_')}-{version}"
        wheel = folder / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            file.writestr(f"{stem}.dist-info/METADATA", metadata)
            file.writestr(
                f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            file.writestr(f"{stem}.dist-info/RECORD", "")
        lines.append(f"{name} @ {wheel.resolve().as_uri()}\n")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(lines), encoding="utf-8")
    return constraints


def _build(requirements: list, machine: Machine, folder: Path) -> None:
    folder.mkdir()
    for requirement in requirements:
        if _canonical(requirement.name) not in machine.installed:
            _pip("wheel", "--no-deps", "--wheel-dir", str(folder), _without_marker(requirement))
    if compiled := [path.name for path in folder.iterdir() if not path.name.endswith("-none-any.whl")]:
        raise UserError(f"{compiled[0]} has compiled parts of this machine; unset DS_BUILD_OPS.")


def _pip(*words: str) -> None:
    """Run pip. If it fails, print its output from the first error on, and raise UserError."""
    command = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = done.stdout.splitlines()
        first = next((i for i, line in enumerate(lines) if line.lstrip().startswith("ERROR")), 0)
        print(*lines[first:], sep="\n", file=sys.stderr)
        raise UserError(
            "pip found no set of wheels; its message is above. If a line of --installed is the cause, leave "
            "it out, and another version is packed. If pip is older than 22.2, upgrade it."
        )


def _metadata(wheel: Path) -> importlib.metadata.Distribution:
    return next(iter(importlib.metadata.distributions(path=[str(wheel)])))


def _applies(requirement, extra: str, machine: Machine) -> bool:
    environment = machine.marker_environment() | {"extra": extra}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _without_marker(requirement) -> str:
    return str(requirement).partition(";")[0].strip()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _read_pyproject() -> dict:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    return tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))


def bundle_wheels(extras: list[str], machine: Machine, torch: str, output: Path) -> list[Path]:
    """Write the wheels that running and building this package requires into a new folder."""
    from pip._vendor.packaging.requirements import Requirement  # pip's copy: any Python with pip can pack

    pyproject = _read_pyproject()
    requirements = project_requirements(pyproject["project"], extras, machine)
    _check_installed(requirements, machine)
    if "torch" not in machine.installed:
        requirements.append(Requirement(f"torch=={torch}"))
    builders = [Requirement(text) for text in pyproject["build-system"]["requires"]]
    anew = Machine(machine.python, machine.platform, {})  # pip builds apart from installed packages
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as work:
        for name, wanted, where in (("needed", requirements, machine), ("builders", builders, anew)):
            folder = Path(work, name)
            folder.mkdir()
            for wheel in fetch_wheels(wanted, where, folder):
                shutil.move(wheel, output / wheel.name)
    return sorted(output.iterdir())


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", required=True, help="extras of pyproject.toml, separated by commas")
    parser.add_argument(
        "--python", required=True, help="Python version of the offline machine, for example 3.12"
    )
    parser.add_argument("--platform", required=True, help="its platform, for example manylinux_2_28_x86_64")
    parser.add_argument("--torch", required=True, help="version of torch to pack if that machine has none")
    parser.add_argument(
        "--installed",
        type=Path,
        help="file with the output of its `pip list --format=freeze`; default: nothing is installed",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        installed = read_installed(options.installed) if options.installed else {}
        machine = Machine(options.python, options.platform, installed)
        bundle_wheels(options.extras.split(","), machine, options.torch, options.output)
    except UserError as error:
        sys.exit(message(error, "bundle_wheels"))


if __name__ == "__main__":
    main()
