# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks as a user runs them: a fresh clone, a real environment, real training on the CPU.

Everything lies under one folder outside the checkout, which other accounts can reach too. The environment in it is
built from nothing by `make train`, once, and shared by all tests. Where two workers run tests at once each has its own
folder; the second one takes what the first one built as hard links, so that what a test removes from one environment
stays in the other. LLMOPS_E2E_KEEP=1 leaves the folders behind and takes up those that are there; LLMOPS_E2E_BASE names
another place, for a second checkout on the same machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import ansible_runner
import pytest

if t.TYPE_CHECKING:
    from ..aws import Endpoint
    from .ec2 import Account
    from .machines import Cluster, First

REPOSITORY = Path(__file__).parents[2]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
ALL = Path(os.environ.get("LLMOPS_E2E_BASE") or f"/var/tmp/llmops-e2e-{os.getuid()}")
BASE = ALL / (WORKER or "alone")
KEEP = bool(os.environ.get("LLMOPS_E2E_KEEP"))
ACCOUNT = "llmops"
"""What the play makes when root logs in; removed afterwards, unless it was there before."""
OURS = pytest.StashKey[bool]()
"""Whether the tests make that account."""
os.environ["TORCH_WARM_POOL"] = "0"  # for scripts that run in an environment, as ranks have it
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONTROLLER_ONLY = (
    "validate_argument_spec",
    "include_tasks",
    "include_role",
    "import_tasks",
    "train_plan",
    "train_preflight",
    "train_status",
)
LINES = {"train_watch_interval": 2}
"""For a play of which the lines of progress are looked at."""
BUILT = "built"
"""Lies in the folder of a worker whose environment is there, and says its name."""
SHORT = {"max_steps": 24, "save_steps": 8, "logging_steps": 4, "lora_dropout": 0.1, "max_samples": 40}
"""A run of a few seconds on the embedded model, with dropout so that random numbers count, over more than two epochs
so that the order of records does."""


@dataclass
class Outcome:
    """What one ansible-playbook did."""

    rc: int
    text: str
    results: list[dict[str, t.Any]] = field(default_factory=list)

    @property
    def changed(self) -> list[str]:
        return [line["task"] for line in self.results if line["result"].get("changed")]

    @property
    def changes(self) -> list[tuple[str, str]]:
        return [
            (change["action"], change["path"])
            for line in self.results
            for change in line["result"].get("changes") or []
        ]

    @property
    def on_node(self) -> list[str]:
        """Modules that were executed on the node, as `-vvv` tells."""
        found = []
        for line in self.text.splitlines():
            _, sign, path = line.partition("Using module file ")
            if sign:
                found.append(Path(path.strip()).stem)
        return found

    @property
    def plan(self) -> dict[str, t.Any]:
        return next(dict(line["result"]["plan"]) for line in self.results if "plan" in line["result"])

    @property
    def run(self) -> dict[str, t.Any]:
        """The run as the last module that told of it saw it."""
        return dict([line["result"]["run"] for line in self.results if "run" in line["result"]][-1])

    @property
    def message(self) -> str:
        return next((str(line["result"].get("msg")) for line in self.results if line["status"] != "ok"), "")


@dataclass
class World:
    """A clone with its own .venv, and the root on this machine, which is the node."""

    clone: Path
    root: Path
    leases: Path
    count: int = 0

    @property
    def variables(self) -> dict[str, t.Any]:
        """What follows a run is told of its end at once, and asks no more than it has to: each question costs a second
        of a core."""
        return {"train_root": str(self.root), "train_lease_dir": str(self.leases), "train_watch_interval": 30}

    def environment(self, record: Path) -> dict[str, str]:
        return {
            "PATH": f"{self.clone}/.venv/bin:{SYSTEM_PATH}",
            "ANSIBLE_CALLBACK_PLUGINS": str(BASE / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "record",
            "RECORD_TO": str(record),
            "HOME": os.environ.get("HOME", "/"),
        }

    def play(
        self,
        playbook: str = "train.yml",
        *arguments: str,
        variables: dict[str, t.Any] | None = None,
        environment: dict[str, str] | None = None,
        inventory: Path | None = None,
        **short: t.Any,
    ) -> Outcome:
        """Run a playbook through ansible-runner. `short`: more LLaMA-Factory keys over SHORT, through train_args."""
        self.count += 1
        folder = BASE / "runner" / str(self.count)
        folder.mkdir(parents=True)
        record = folder / "record.jsonl"
        record.touch()
        asked = {**self.variables, "train_args": {**SHORT, **short}, **(variables or {})}
        ended = ansible_runner.run(
            private_data_dir=str(folder),
            project_dir=str(self.clone),
            playbook=playbook,
            inventory=str(inventory or self.clone / "inventory"),
            cmdline=" ".join(arguments),
            extravars=asked,
            envvars={**self.environment(record), **(environment or {})},
            verbosity=3,
            quiet=True,
        )
        text = ended.stdout.read() if ended.stdout else ""
        return Outcome(ended.rc, text, read_record(record))

    def folder(self, outcome: Outcome) -> Path:
        return self.root / "runs" / str(outcome.plan["id"])

    def shell(self, command: list[str], **options: t.Any) -> subprocess.CompletedProcess[str]:
        """A command in the clone, as typed by a person."""
        return subprocess.run(command, cwd=self.clone, capture_output=True, text=True, check=False, **options)


def read_record(path: Path) -> list[dict[str, t.Any]]:
    lines: list[dict[str, t.Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return lines


def tree(*folders: Path) -> dict[str, str]:
    """Every path below the folders with size and time, to see that nothing was touched. Access times do not count."""
    seen = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            if not path.is_symlink() and path.exists():
                now = path.stat()
                seen[str(path)] = f"{now.st_size} {now.st_mtime_ns}" if path.is_file() else "folder"
    return seen


def weights(folder: Path, name: str = "adapter_model.safetensors") -> str:
    return hashlib.sha256((folder / "output" / name).read_bytes()).hexdigest()


def processes(run_id: str) -> list[int]:
    """Every living process of a run, supervisor included, found by its environment or its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            named = f"LLMOPS_RUN={run_id}".encode() in (entry / "environ").read_bytes()
            inside = str((entry / "cwd").readlink()).endswith(f"/runs/{run_id}")
            zombie = ") Z " in (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if (named or inside) and not zombie:
            found.append(int(entry.name))
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    session.stash[OURS] = not WORKER and os.getuid() == 0 and not has_account()
    if not WORKER and not KEEP:
        for left in ALL.glob(f"*/{BUILT}"):
            left.unlink()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The account goes with the last of the workers."""
    if session.stash[OURS] and has_account() and not KEEP:
        subprocess.run(["userdel", "--remove", ACCOUNT], check=False, capture_output=True)


def has_account() -> bool:
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        return False
    return True


@pytest.fixture(scope="session")
def world() -> t.Iterator[World]:
    """A clone with a blank in its path. `git clone` of what is committed, then set up by the tests through make."""
    if not KEEP:
        shutil.rmtree(BASE, ignore_errors=True)
    BASE.mkdir(parents=True, exist_ok=True)
    for folder in (ALL, BASE):
        folder.chmod(0o755)
    clone, root = BASE / "fresh clone", BASE / "root"
    for left in ("runner", "root/runs", "root/media"):
        shutil.rmtree(BASE / left, ignore_errors=True)
    for name in ("callbacks", "killer"):
        shutil.copytree(REPOSITORY / "tests" / "e2e" / name, BASE / name, dirs_exist_ok=True)
    if clone.exists():
        subprocess.run(["git", "pull", "--quiet"], cwd=clone, check=True)
    else:
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", REPOSITORY, clone], check=True)
    root.mkdir(exist_ok=True)
    if os.getuid() == 0:
        root.chmod(0o777)  # the account is made by the play
    print(f"\nfresh clone: {clone}, Python {sys.version.split()[0]}", file=sys.stderr)
    leases = BASE / "leases"
    leases.mkdir(exist_ok=True)
    leases.chmod(0o1777)
    yield World(clone, root, leases)
    if not KEEP:
        shutil.rmtree(BASE, ignore_errors=True)


@dataclass
class Demo:
    """The demo, trained by `make train` in the fresh clone, and what check mode had said before."""

    predicted: Outcome
    touched: list[str]
    """Paths that check mode created or altered."""
    text: str
    applied: Outcome
    folder: Path


@pytest.fixture(scope="session")
def demo(world: World) -> Demo:
    """One worker after the other: the first one has no account and no packages, and sees what check mode touches."""
    with open(ALL / "demo.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = next((path for path in ALL.iterdir() if path != BASE and (path / BUILT).exists()), None)
        if other and not (world.root / "envs").exists():
            take_up(world.root, other / world.root.name, (other / BUILT).read_text(encoding="utf-8"))
        made = make_demo(world)
        python = json.loads((made.folder / "launch.json").read_text(encoding="utf-8"))["python"]
        (BASE / BUILT).write_text(Path(python).parents[1].name, encoding="utf-8")
        return made


def take_up(root: Path, other: Path, environment: str) -> None:
    """Have packages and environment of another root as hard links, and its base model, which tests damage."""
    for name in ("cache", "envs"):
        (root / name).mkdir()
        (root / name).chmod(0o777)
    subprocess.run(["cp", "-al", other / "cache/uv", root / "cache/uv"], check=False)  # uv may be at work there
    subprocess.run(["cp", "-al", other / "envs" / environment, root / "envs" / environment], check=True)
    subprocess.run(["cp", "-a", other / "models", root / "models"], check=True)


def make_demo(world: World) -> Demo:
    made = world.shell(["make", "setup"], env={**os.environ, "PATH": SYSTEM_PATH})
    assert made.returncode == 0, made.stdout + made.stderr
    watched = [path for path in world.clone.iterdir() if path.name not in (".venv", ".git")]
    watched += [
        world.root,
        Path("/var/lib/llmops"),
        Path("/run/lock"),
        Path("/etc/passwd"),
        Path("/etc/systemd/system"),
    ]
    before = tree(*watched)
    predicted = world.play("train.yml", "--check", "--diff", variables={"train_args": {"lora_rank": 16}})
    after = tree(*watched)
    touched = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    record = BASE / "make-train.jsonl"
    record.unlink(missing_ok=True)
    extra = json.dumps({**world.variables, **LINES})
    done = world.shell(
        ["make", "train", f"ARGS=-e '{extra}'"],
        env={**os.environ, **world.environment(record), "PATH": SYSTEM_PATH},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    applied = Outcome(0, done.stdout, read_record(record))
    return Demo(predicted, touched, done.stdout, applied, world.folder(applied))


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> t.Iterator[Cluster]:
    """Three hosts, for the tests of `make cluster`."""
    from . import machines

    yield from machines.cluster(request)


@pytest.fixture(scope="session")
def first(cluster: Cluster) -> First:
    from . import machines

    return machines.first(cluster)


@pytest.fixture(scope="module")
def endpoint() -> t.Iterator[Endpoint]:
    """A stand-in of AWS."""
    from . import ec2

    yield from ec2.endpoint()


@pytest.fixture
def account(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Account]:
    """An account there, with a network."""
    from . import ec2

    yield from ec2.account(endpoint, monkeypatch)
