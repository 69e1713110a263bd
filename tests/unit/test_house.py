# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The house: link farm, tarball, interfaces of roles and modules, locks, names in the docs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import typing as t
from pathlib import Path

import pytest
import yaml

from ..conftest import REPOSITORY, files

FARM = REPOSITORY / "collections" / "ansible_collections" / "llmops" / "finetune"
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir() if (path / "meta").is_dir())
MODULES = sorted((REPOSITORY / "plugins" / "modules").glob("[a-z]*.py"))
LOCKS = sorted((REPOSITORY / "requirements").glob("*.in"))
TEXTS = [path for path in files() if not (REPOSITORY / path).is_symlink() and path.name != "LICENSE"]

Lock = dict[str, list[tuple[str, str, list[str]]]]
"""Name of a package → version, marker and hashes of each of its requirements."""


def load(path: str | Path) -> t.Any:
    return yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))


# Farm and tarball


@pytest.fixture(scope="module")
def packed(copy_tree: t.Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the tarball of a checkout in which all tools have left their traces."""
    tree = copy_tree(tmp_path_factory.mktemp("build") / "tree")
    traces = [".venv", ".cache", ".ansible", ".mypy_cache", ".pytest_cache", ".ruff_cache", "tests/output", "docs"]
    for folder in [*traces, "plugins/modules/__pycache__", "plugins/module_utils/_engine/__pycache__"]:
        (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / folder / "trace.pyc").touch()
    (tree / "llmops-finetune-0.0.9.tar.gz").touch()
    galaxy = str(Path(sys.executable).parent / "ansible-galaxy")
    subprocess.run([sys.executable, galaxy, "collection", "build", "--output-path", "../built"], cwd=tree, check=True)
    (built,) = (tree.parent / "built").iterdir()
    with tarfile.open(built) as tarball:
        return set(tarball.getnames())


def test_every_shipped_entry_has_its_link_and_every_link_is_shipped(packed: set[str]) -> None:
    shipped = {name.split("/")[0] for name in packed} - {"MANIFEST.json", "FILES.json"}
    linked = {path.name for path in FARM.iterdir()}
    assert linked - {"galaxy.yml"} == shipped  # Galaxy turns galaxy.yml into MANIFEST.json


def test_links_are_relative_and_lead_to_the_root() -> None:
    for link in FARM.iterdir():
        assert link.is_symlink(), link
        assert os.readlink(link) == f"../../../../{link.name}"
        assert link.exists(), f"{link.name} dangles"


def test_the_tarball_has_what_runs_need_and_no_traces(packed: set[str]) -> None:
    needed = {
        "requirements/build.txt",
        "requirements/node-main.txt",
        "requirements/node-ray.txt",
        "requirements/node-store.txt",
        "templates/ray.unit.j2",
        "templates/train.yaml.j2",
        "roles/train/tasks/main.yml",
        "playbooks/train.yml",
    }
    assert needed <= packed
    assert not [name for name in packed if "__pycache__" in name or name.endswith((".pyc", ".tar.gz"))]


def test_group_vars_are_beside_every_inventory() -> None:
    assert (REPOSITORY / "inventories" / "group_vars").samefile(REPOSITORY / "group_vars")
    assert (REPOSITORY / "inventory").samefile(REPOSITORY / "inventories" / "local.yml")


# Roles and modules


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_name_the_same_inputs_and_values(role: str) -> None:
    defaults = load(f"roles/{role}/defaults/main.yml")
    specs = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    options = specs["main"]["options"]
    optional = {name for name, option in options.items() if not option.get("required")}
    assert set(defaults) == optional
    for entry, spec in specs.items():
        for name, option in spec.get("options", {}).items():
            assert name.startswith(f"{role}_"), f"{name} lacks the prefix of its role"
            assert option.get("type") and option.get("description"), f"{name} of {entry} is not described"
            if computed(defaults.get(name)):
                assert option.get("default") in (None, defaults[name]), f"{name} of {entry}"
            elif name in defaults:
                assert option["default"] == defaults[name] and type(option["default"]) is type(defaults[name]), name


def computed(value: object) -> bool:
    return isinstance(value, str) and "{{" in value


def documentation(module: Path) -> dict[str, t.Any]:
    """The DOCUMENTATION of a module, with the fragments of this collection that it names."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and [getattr(name, "id", "") for name in node.targets] == ["DOCUMENTATION"]:
            told: dict[str, t.Any] = yaml.safe_load(ast.literal_eval(node.value))
            for fragment in told.get("extends_documentation_fragment", []):
                told |= documentation(REPOSITORY / "plugins/doc_fragments" / f"{fragment.rpartition('.')[2]}.py")
            return told
    return {}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_modules_say_since_when_and_what_check_mode_does(module: Path) -> None:
    told = documentation(module)
    assert told["module"] == module.stem
    assert told["version_added"] == "0.1.0"
    assert set(told["attributes"]) >= {"check_mode", "diff_mode", "idempotent"}
    for name, attribute in told["attributes"].items():
        assert attribute["support"] in {"full", "partial", "none"}, name
        assert attribute["support"] == "full" or attribute.get("details") or attribute.get("description"), name


def test_plugins_carry_the_licence() -> None:
    for path in files():
        if path.parts[0] in {"plugins", "tests"} and path.suffix == ".py" and (REPOSITORY / path).stat().st_size:
            head = (REPOSITORY / path).read_text(encoding="utf-8").splitlines()[:5]
            assert "# SPDX-License-Identifier: GPL-3.0-or-later" in head, path


# Locks


def read_lock(name: str) -> Lock:
    """Read `requirements/<name>.txt`; a line that is neither a requirement, a hash nor a comment is an error."""
    found: Lock = {}
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        pinned = re.fullmatch(r"([a-z0-9._-]+)==([^\s;]+)(?: ; ([^#]+?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        assert pinned, f"neither pinned nor hashed: {line[:120]}"
        package, version, marker, hashes = pinned.groups()
        found.setdefault(package, []).append((version, marker or "", hashes.split()))
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_locks_hold_what_was_asked_for(path: Path) -> None:
    lock = read_lock(path.stem)
    asked = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert asked and (len(lock) >= 15 or path.stem in {"build", "collections", "node-store"})
    for package, version in asked:
        versions = [pinned for pinned, _marker, _hashes in lock.get(re.sub(r"[-_.]+", "-", package).lower(), [])]
        assert version in versions, f"make lock: {package}=={version} is asked for, {versions} is locked"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_package_with_several_versions_says_which_is_meant_when(path: Path) -> None:
    for package, pins in read_lock(path.stem).items():
        markers = [marker for _version, marker, _hashes in pins]
        assert len(pins) == 1 or (all(markers) and len(set(markers)) == len(markers)), package


def test_tools_come_on_top_of_the_controller() -> None:
    controller, dev = (
        {package: [version for version, _marker, _hashes in pins] for package, pins in read_lock(name).items()}
        for name in ("controller", "dev")
    )
    assert {package: dev.get(package) for package in controller} == controller


def test_build_tools_are_those_of_the_environment() -> None:
    """One setuptools, whose wheel a site without an index has anyway."""
    build, node = read_lock("build"), read_lock("node-main")
    assert {package: node.get(package) for package in build} == build


def test_the_bundle_is_that_of_the_controllers_ansible() -> None:
    """12.3.0 carries ansible-core 2.19, 14.5.0 carries 2.21."""
    bundle, core = (read_lock(name) for name in ("collections", "controller"))
    assert [(version.split(".")[0], marker) for version, marker, _hashes in bundle["ansible"]] == [
        (str(int(version.split(".")[1]) - 7), marker) for version, marker, _hashes in core["ansible-core"]
    ]


def test_the_project_asks_for_what_the_locks_hold() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    for lock, names in (
        ("controller", project["project"]["dependencies"]),
        ("dev", project["dependency-groups"]["dev"]),
    ):
        assert {re.split(r"[^A-Za-z0-9_-]", name)[0].lower() for name in names} <= set(read_lock(lock))
    galaxy = load("galaxy.yml")
    assert galaxy["version"] == project["project"]["version"]
    assert load("meta/runtime.yml")["requires_ansible"].startswith(">=2.19")


# Words


# Put together from parts, so that this file does not name what no file may name.
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("galaxy", "ansible", "com"),
        ("deb", "debian", "org"),
        ("registry", "npmjs", "org"),
    )
]
FOLDERS = ["root", "work", "tmp/lab"]
FORBIDDEN = re.compile(
    rf"{'|'.join(map(re.escape, HOSTS))}|(?<![\w.~-])/(?:{'|'.join(FOLDERS)})/"
    r"|/opt/(?:wheels|pypi)|/\.pyenv/versions/3\.\d+\.\d"
)


def test_no_host_of_an_index_and_no_path_of_one_machine() -> None:
    found = []
    for path in TEXTS:
        if path.name != Path(__file__).name:
            for number, line in enumerate((REPOSITORY / path).read_text(encoding="utf-8").splitlines(), 1):
                found += [f"{path}:{number}: {hit.group()}" for hit in FORBIDDEN.finditer(line)]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        *(f"https://{host}/simple" for host in HOSTS),
        *(f"home: /{folder}" for folder in FOLDERS),
        "/home/a/.pyenv/versions/3.11.7/bin",
    ],
)
def test_what_is_forbidden_is_found(line: str) -> None:
    assert FORBIDDEN.search(f"{line}/")


def test_documents_name_inputs_and_targets_that_exist() -> None:
    inputs = {
        name
        for role in ROLES
        for entry in load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"].values()
        for name in entry.get("options", {})
    }
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    playbooks = {path.stem for path in (REPOSITORY / "playbooks").glob("*.yml")}
    named_input = re.compile(rf"(?<![\w.])((?:{'|'.join(ROLES)})_[a-z_]+)(?![\w(.*])")
    not_inputs = {path.stem for path in MODULES} | {"train_loss", "train_batch_size"} | set(ROLES)
    for name in [
        "README.md",
        "docs/ec2.md",
        "group_vars/all.yml",
        "group_vars/ec2.yml",
        "group_vars/trainers.yml",
        *(f"roles/{role}/README.md" for role in ROLES),
    ]:
        path = REPOSITORY / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        assert set(named_input.findall(text)) <= inputs | not_inputs, name
        assert set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE)) <= targets, name
        assert set(re.findall(r"ansible-playbook llmops\.finetune\.([a-z_]+)", text)) <= playbooks, name


def test_ci_calls_make_test_and_nothing_else() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec make test"]
