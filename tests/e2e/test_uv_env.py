# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment as a resource, with the real uv and tiny wheels made on the spot (no network, no index)."""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import typing as t
import zipfile
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.action import uv_env as action
from ansible_collections.llmops.finetune.plugins.module_utils import _env, _user
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .wheel_site import Site, make_wheel, tree


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_story(site: Site) -> None:
    """Check mode, apply, again, check mode again, absent; with the number of module executions, two of them looks."""
    before = tree(site.folder)
    predicted = site.play("--check")
    assert (predicted.rc, predicted.result["changed"], predicted.executions) == (0, True, 2)
    assert tree(site.folder) == before

    first = site.play()
    assert (first.rc, first.result["changed"], first.executions) == (0, True, 3), first.output
    assert first.result["changes"] == predicted.result["changes"]
    assert [change["action"] for change in first.result["changes"]] == ["create", "build"]
    assert first.result["path"] == str(site.path)
    assert first.result["packages"] == {"tiny-alpha": "1.0", "tiny-beta": "2.0"}
    program = [first.result["python"], "-c", "import tiny_alpha; print(tiny_alpha.alpha)"]
    said = subprocess.run(program, capture_output=True, check=True)
    assert said.stdout == b"1\n"
    mark = json.loads((site.path / _env.MARK).read_text())
    assert (mark["lock"], mark["digest"], mark["packages"]) == ("tiny", site.path.name, first.result["packages"])

    before = tree(site.folder)
    for options in ((), ("--check",)):
        again = site.play(*options)
        assert (again.rc, again.result["changed"], again.result["changes"], again.executions) == (0, False, [], 2)
        assert tree(site.folder) == before

    predicted = site.play("--check", uv_env_state="absent")
    assert tree(site.folder) == before
    gone = site.play(uv_env_state="absent")
    assert gone.result["changes"] == predicted.result["changes"] == [{"action": "remove", "path": str(site.path)}]
    assert list((site.root / "envs").iterdir()) == []
    assert not site.apply(state="absent")["changed"]


def shared(path: Path) -> Path:
    """A file that is the cache's file too."""
    assert path.stat().st_nlink > 1, "uv did not hard-link: the cache would not be damaged with the environment"
    return path


def uninstall(site: Site) -> None:
    uv = action.controller_uv()
    subprocess.run([uv, "pip", "uninstall", "-q", "-p", str(site.path / "bin/python"), "tiny_alpha"], check=True)


def add_package(site: Site) -> None:
    make_wheel(site.wheels, "tiny_extra", "3.0", {"tiny_extra.py": "extra = 3\n"})
    with zipfile.ZipFile(site.wheels / "tiny_extra-3.0-py3-none-any.whl") as archive:
        archive.extractall(site.packages)


@pytest.mark.parametrize(
    ("damage", "action_name", "named"),
    [
        (lambda s: os.truncate(shared(s.packages / "tiny_alpha/b.py"), 2), "update", "tiny-alpha"),
        (lambda s: shared(s.packages / "tiny_alpha/b.py").write_text("b = 3\n"), "update", "tiny-alpha"),
        (lambda s: (s.packages / "tiny_alpha/b.py").unlink(), "update", "tiny-alpha"),
        (lambda s: shutil.rmtree(s.packages / "tiny_alpha"), "update", "tiny-alpha"),
        (lambda s: shutil.rmtree(s.packages / "tiny_alpha-1.0.dist-info"), "create", "tiny-alpha"),
        (uninstall, "create", "tiny-alpha"),
        (lambda s: os.truncate(s.packages / "tiny_beta-2.0.dist-info/RECORD", 5), "update", "tiny-beta"),
        (
            lambda s: (s.packages / "tiny_beta-2.0.dist-info").rename(s.packages / "tiny_beta-2.1.dist-info"),
            "update",
            "tiny-beta",
        ),
        (add_package, "remove", "tiny-extra"),
    ],
    ids=["truncated", "flipped", "file-gone", "folder-gone", "info-gone", "uninstalled", "record", "version", "extra"],
)
def test_damage_is_predicted_repaired_and_named(
    site: Site, damage: t.Callable[[Site], object], action_name: str, named: str
) -> None:
    assert site.apply()["built"]
    good = contents(site)
    damage(site)
    before = tree(site.folder)
    predicted = site.apply(check=True)
    assert tree(site.folder) == before
    done = site.apply(imports=["tiny_alpha", "tiny_beta"])
    assert done["changes"] == predicted["changes"]
    assert [change["action"] for change in done["changes"]] == [action_name]
    assert (done["repaired"], done["built"]) == ([named], False)
    assert named in done["warnings"][0]
    assert contents(site) == good
    assert not site.apply(verify="full")["changed"]


def contents(site: Site) -> dict[str, bytes]:
    """Every source file of the environment."""
    return {str(path): path.read_bytes() for path in sorted(site.packages.rglob("*.py"))}


def test_a_damaged_cache_does_not_reach_a_new_environment(site: Site) -> None:
    site.apply()
    good = contents(site)
    shared(site.packages / "tiny_alpha/b.py").write_text("b = 3\n")
    shutil.rmtree(site.path)
    site.apply()
    assert contents(site) == good


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda s: (s.path / _env.MARK).unlink(), "never finished"),
        (lambda s: os.truncate(s.path / _env.MARK, 10), "cannot be read"),
        (lambda s: (s.path / "bin/python").unlink(), "Python"),
        (lambda s: (s.path / "pyvenv.cfg").write_text("home = /usr/bin\n"), "pyvenv.cfg"),
        (lambda s: shutil.rmtree(s.packages), "site-packages"),
    ],
)
def test_what_cannot_be_repaired_is_built_again(site: Site, damage: t.Callable[[Site], object], says: str) -> None:
    site.apply()
    damage(site)
    predicted = site.apply(check=True)
    done = site.apply()
    assert done["changes"] == predicted["changes"]
    assert [change["action"] for change in done["changes"]] == ["remove", "build"]
    assert says in done["warnings"][0]
    assert not site.apply()["changed"]


def wait_for(condition: t.Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def processes(site: Site) -> list[int]:
    """The processes of the environment's own Python, and those that hold its lock."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text()
            held = [os.readlink(link) for link in (folder / "fd").iterdir()]
        except OSError:
            continue
        if words.startswith(f"{site.path}/bin/python") or any(
            "/.lock-" in path and str(site.root) in path for path in held
        ):
            found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def test_killed_build_is_never_trusted(site: Site) -> None:
    site.gate.touch()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        building = pool.submit(site.play)
        wait_for(
            lambda: any(site.path.glob("lib/*/site-packages/tiny_beta.py")) and len(processes(site)) > 1, "imports"
        )
        for pid in processes(site):
            os.kill(pid, signal.SIGKILL)
        killed = building.result()
    assert killed.rc != 0
    (payload,) = killed.left
    assert payload.startswith("ansible_llmops.finetune.uv_env_payload_"), "what a killed module cannot remove itself"
    assert not (site.path / _env.MARK).exists()
    site.gate.unlink()
    done = site.play()
    assert [change["action"] for change in done.result["changes"]] == ["remove", "build"]
    assert "never finished" in done.output
    assert not site.play().result["changed"]


def test_two_applies_at_once_build_once(site: Site) -> None:
    site.gate.touch()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        one, two = pool.submit(site.play), pool.submit(site.play)
        wait_for(lambda: any(site.path.glob("lib/*/site-packages/tiny_beta.py")), "the first build")
        wait_for(
            lambda: sum(path.name == f".lock-{site.path.name}" for path in (site.root / "envs").iterdir()) == 1, "lock"
        )
        time.sleep(2)
        site.gate.unlink()
        outcomes = [one.result(), two.result()]
    assert [outcome.rc for outcome in outcomes] == [0, 0], "\n".join(outcome.output for outcome in outcomes)
    assert sorted(outcome.result["built"] for outcome in outcomes) == [False, True]
    assert sorted(outcome.result["changed"] for outcome in outcomes) == [False, True]


def fake_python(site: Site, version: list[int]) -> str:
    facts = {"version": version, "implementation": "CPython", "in_venv": False, "base": "", "platform": "linux-x86_64"}
    path = site.folder / "python"
    path.write_text(f"#!/bin/sh\necho '{json.dumps({**facts, 'include': '', 'free_threaded': False})}'\n")
    path.chmod(0o755)
    return str(path)


def test_refusals_touch_nothing_and_name_the_remedy(site: Site) -> None:
    empty = site.folder / "empty"
    empty.mkdir()
    old = fake_python(site, [3, 10, 12])
    before = tree(site.folder)
    for variables, words in (
        ({"python": old}, ("Python 3.10.12", "apt install python3.11", "uv_env_python")),
        ({"python": "/nowhere/python"}, ("no file that this user can reach", "uv_env_python")),
        ({"find_links": "/nowhere"}, ("no folder /nowhere", "uv_env_find_links")),
        ({"root": "relative"}, ("not an absolute path", "uv_env_root")),
        ({"user": "no-such-user"}, ("no user 'no-such-user'",)),
    ):
        for check in (True, False):
            with pytest.raises(FinetuneError) as refusal:
                site.apply(check, **variables)
            told = refusal.value.message()
            assert not [word for word in words if word not in told], told
    for options, asked, words in (
        (("--check",), {"uv_env_lock": "nowhere.txt"}, ("no lock", "uv_env_lock")),
        ((), {"uv_env_python": old}, ("Python 3.10.12", "uv_env_python")),
    ):
        refused = site.play(*options, **asked)
        assert refused.rc != 0 and not [word for word in words if word not in refused.result["msg"]], refused.result
        assert "Traceback" not in refused.output
    assert tree(site.folder) == before


def test_what_uv_cannot_get_is_explained(site: Site) -> None:
    (site.wheels / "tiny_beta-2.0-py3-none-any.whl").rename(site.folder / "kept")
    with pytest.raises(FinetuneError, match="may not be used") as caught:
        site.apply()
    assert "uv_env_find_links" in caught.value.message()
    make_wheel(site.wheels, "tiny_beta", "2.0", {"tiny_beta.py": "other = 1\n"})
    with pytest.raises(FinetuneError, match="hash"):
        site.apply()
    (site.folder / "kept").rename(site.wheels / "tiny_beta-2.0-py3-none-any.whl")
    with pytest.raises(FinetuneError, match="does not import no_such_module"):
        site.apply(imports=["no_such_module"])
    assert not (site.path / _env.MARK).exists()
    assert site.apply()["built"]


def test_another_python_rebuilds(site: Site) -> None:
    """Naming the Python that is there changes nothing; a Python that the environment was not built on rebuilds it."""
    site.apply()
    mark = json.loads((site.path / _env.MARK).read_text())
    assert not site.apply(python=mark["python"])["changed"]
    assert not site.apply(python=str(site.path / "bin/python"))["changed"]
    (site.path / _env.MARK).write_text(json.dumps({**mark, "python": "/bin/sh"}))
    assert site.apply(python=mark["python"])["built"]


def test_for_another_user(site: Site) -> None:
    """Root gives the environment to its user and leaves nothing of its own; anybody else is refused."""
    other = "nobody"
    if os.geteuid() != 0:
        with pytest.raises(FinetuneError, match=f"cannot act as user {other!r}"):
            site.apply(user=other)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Site(Path(folder) / "")
        place.root.mkdir()
        with pytest.raises(FinetuneError, match="may not write"):
            place.apply(user=other)
        shutil.chown(place.root, other)
        done = place.play(uv_env_user=other)
        assert (done.rc, done.left) == (0, []), done.output
        assert {path.lstat().st_uid for path in place.root.rglob("*")} == {pwd.getpwnam(other).pw_uid}
        assert not place.play(uv_env_user=other).result["changed"]


def test_before_the_default_account_exists(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check mode predicts where an earlier task would create the account; apply refuses."""

    def nobody_there(name: str) -> t.NoReturn:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", nobody_there)
    monkeypatch.setattr(_user, "DEFAULT_HOME", str(site.folder / "home"))
    if os.geteuid() == 0:
        predicted = site.apply(check=True, user=_user.DEFAULT_ACCOUNT, root="~/llmops")
        assert [change["action"] for change in predicted["changes"]] == ["create", "build"]
        assert predicted["path"] == f"{_user.DEFAULT_HOME}/llmops/envs/{site.path.name}"
        assert not (site.folder / "home").exists()
        assert predicted["packages"] == {"tiny-alpha": "1.0", "tiny-beta": "2.0"}
    with pytest.raises(FinetuneError, match="no user"):
        site.apply(user=_user.DEFAULT_ACCOUNT)


BACKEND = """\
import pathlib, zipfile

FILES = {
    "tiny_source.py": "made_with = VERSION\\n",
    "tiny_source-1.0.dist-info/METADATA": "Metadata-Version: 2.2\\nName: tiny_source\\nVersion: 1.0\\n",
    "tiny_source-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "tiny_source-1.0.dist-info/RECORD": "tiny_source.py,,\\ntiny_source-1.0.dist-info/RECORD,,\\n",
}

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "tiny_source-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
    return name
"""


def make_source(folder: Path) -> str:
    """Write a source package that is built with any version of tiny-backend, and return its lock line."""
    path = folder / "tiny_source-1.0.tar.gz"
    settings = '[build-system]\nrequires = ["tiny-backend"]\nbuild-backend = "tiny_backend"\n'
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (
            ("PKG-INFO", "Metadata-Version: 2.2\nName: tiny_source\nVersion: 1.0\n"),
            ("pyproject.toml", settings),
        ):
            member = tarfile.TarInfo(f"tiny_source-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return f"tiny_source==1.0 --hash=sha256:{files.sha256(path)}"


def test_source_packages_are_built_with_pinned_tools(site: Site) -> None:
    site.lock.write_text(make_source(site.wheels) + "\n")
    older, newer = (
        make_wheel(site.wheels, "tiny_backend", version, {"tiny_backend.py": BACKEND.replace("VERSION", version)})
        for version in ("1", "2")
    )
    constraints = site.folder / "build-tools.txt"

    def made_with(text: str) -> str:
        shutil.rmtree(site.root, ignore_errors=True)
        done = site.apply(imports=["tiny_source"], build_constraints=text)
        return next(Path(done["path"]).rglob("tiny_source.py")).read_text().strip()

    assert made_with("") == "made_with = 2"
    assert made_with(newer) == "made_with = 2"
    with pytest.raises(FinetuneError, match="hash"):
        made_with(re.sub(r"sha256:.{4}", "sha256:0000", older))
    shutil.rmtree(site.root)
    constraints.write_text(older)
    done = site.play(uv_env_build_constraints=str(constraints), uv_env_imports=["tiny_source"])
    assert done.rc == 0, done.output
    assert next(Path(done.result["path"]).rglob("tiny_source.py")).read_text().strip() == "made_with = 1"
    constraints.write_text("tiny_backend==1")
    assert "exact version" in site.play(uv_env_build_constraints=str(constraints)).result["msg"]
