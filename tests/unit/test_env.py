# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an environment is called, what its lock installs, which Python carries it, and what damage looks like."""

from __future__ import annotations

import base64
import hashlib
import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _env
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

HASH_A = "--hash=sha256:" + "a" * 64
HASH_B = "--hash=sha256:" + "b" * 64
LOCK = f"""\
# a comment
alpha==1.0 \\
    {HASH_A} \\
    {HASH_B}
    # via beta
beta[extra]==2.1.post1 ; python_full_version < '3.12' \\
    {HASH_A}

Beta[extra]==2.2 ; python_full_version >= '3.12' \\
    {HASH_B}
windows-only==3.0 ; sys_platform == 'win32' {HASH_A}
"""


# --- names ---


def test_digest_is_of_requirements_and_hashes_only() -> None:
    relaid = (
        f"beta[Extra]==2.2 ; python_full_version   >= '3.12' {HASH_B}\n\n"
        f"windows_only==3.0 ; sys_platform == 'win32' {HASH_A} # why\n"
        f"alpha==1.0 {HASH_B} {HASH_A}\r\nbeta[extra]==2.1.post1; python_full_version < '3.12' {HASH_A}"
    )
    assert _env.environment_digest(relaid) == _env.environment_digest(LOCK)
    assert len(_env.environment_digest(LOCK)) == 16


@pytest.mark.parametrize(
    ("old", "new"),
    [("alpha==1.0", "alpha==1.1"), (HASH_B, "--hash=sha256:" + "c" * 64), ("< '3.12'", "< '3.13'"), ("[extra]", "")],
)
def test_digest_changes_with_content(old: str, new: str) -> None:
    assert _env.environment_digest(LOCK.replace(old, new)) != _env.environment_digest(LOCK)


def test_path() -> None:
    assert _env.environment_path("/srv/llmops/", "0123") == "/srv/llmops/envs/0123"


# --- locks ---


@pytest.mark.parametrize(
    ("python", "beta"), [((3, 11), "2.1.post1"), ((3, 11, 9), "2.1.post1"), ((3, 12), "2.2"), ((3, 13, 1), "2.2")]
)
def test_parse_lock_evaluates_markers(python: tuple[int, ...], beta: str) -> None:
    assert _env.parse_lock(LOCK, python) == {"alpha": "1.0", "beta": beta}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("alpha==1.0\n", "exact version"),
        (f"alpha>=1.0 {HASH_A}\n", "exact version"),
        (f"alpha @ https://example.invalid/a.whl {HASH_A}\n", "exact version"),
        ("--index-url https://example.invalid/simple\n", "no options"),
        (f"alpha==1.0 ; python_version ~ '3' {HASH_A}\n", "cannot be read"),
        (f"alpha==1.0 {HASH_A}\nalpha==1.1 {HASH_A}\n", "two versions of alpha"),
    ],
)
def test_bad_locks_are_refused(text: str, says: str) -> None:
    with pytest.raises(FinetuneError, match=says):
        _env.parse_lock(text, (3, 11), "mine")


def test_refusal_names_file_and_line() -> None:
    with pytest.raises(FinetuneError) as caught:
        _env.read_lock(f"alpha==1.0 \\\n  {HASH_A}\nbeta\n", "mine.txt")
    assert "mine.txt, line 3: beta" in caught.value.message()


# --- markers ---


@pytest.mark.parametrize(
    ("marker", "true_for"),
    [
        ("python_full_version < '3.12'", "3.11"),
        ("python_full_version >= '3.12'", "3.12 3.13"),
        ("python_version == '3.12'", "3.12"),
        ("python_version != '3.12'", "3.11 3.13"),
        ("python_version == '3.1.*'", ""),
        ("python_full_version == '3.11.*'", "3.11"),
        ("python_full_version != '3.11.*'", "3.12 3.13"),
        ("python_version ~= '3.12'", "3.12 3.13"),
        ("python_full_version <= '3.11'", ""),
        ("python_full_version > '3.11'", "3.11 3.12 3.13"),
        ("python_version < '3.9'", ""),
        ("'3.12' <= python_version", "3.12 3.13"),
        ("sys_platform == 'win32'", ""),
        ("sys_platform != 'win32'", "3.11 3.12 3.13"),
        ("platform_machine == 'x86_64' and sys_platform == 'linux'", "3.11 3.12 3.13"),
        ("platform_machine == 'aarch64' or platform_machine == 'x86_64'", "3.11 3.12 3.13"),
        ("sys_platform == 'linux' or sys_platform == 'win32' and python_version < '3'", "3.11 3.12 3.13"),
        ("(sys_platform == 'linux' or sys_platform == 'win32') and python_version < '3.12'", "3.11"),
        ("implementation_name != 'PyPy' and platform_python_implementation != 'PyPy'", "3.11 3.12 3.13"),
        ("sys_platform in 'linux darwin'", "3.11 3.12 3.13"),
        ("platform_machine not in 'arm64 aarch64'", "3.11 3.12 3.13"),
        ('os_name == "posix"', "3.11 3.12 3.13"),
    ],
)
def test_markers(marker: str, true_for: str) -> None:
    patches = {"3.11": (3, 11, 2), "3.12": (3, 12, 0), "3.13": (3, 13, 5)}
    assert [name for name, version in patches.items() if _env.holds(marker, _env.target(version))] == true_for.split()


@pytest.mark.parametrize(
    "marker",
    [
        "python_version",
        "python_version <",
        "(sys_platform == 'linux'",
        "sys_platform == 'linux')",
        "unknown_name == 'x'",
        "sys_platform < 'linux'",
        "sys_platform == 'linux' && os_name == 'posix'",
        "sys_platform == 'linux' os_name",
        "os_name == 'posix' or unknown_name == 'x'",
        "__import__('os')",
        "",
    ],
)
def test_unreadable_markers_are_refused(marker: str) -> None:
    with pytest.raises(FinetuneError, match="cannot be read"):
        _env.holds(marker, _env.target((3, 11)))


@pytest.mark.parametrize(
    ("installed", "locked", "same"),
    [
        ("1.0", "1.0", True),
        ("1.0.0", "1", True),
        ("2024.1.2", "2024.01.02", True),
        ("1.0rc1", "1.0.rc1", True),
        ("2.8.0+cu128", "2.8.0", True),
        ("2.8.0", "2.8.0+cu128", False),
        ("2.8.0+cu126", "2.8.0+cu128", False),
        ("1.10", "1.1", False),
        ("1.0.post1", "1.0", False),
        ("1.0rc1", "1.0", False),
    ],
)
def test_same_version(installed: str, locked: str, same: bool) -> None:
    assert _env.same_version(installed, locked) is same


# --- the Python and the node ---

FACTS: dict[str, t.Any] = {
    "version": [3, 12, 3],
    "implementation": "CPython",
    "platform": "linux-x86_64",
    "free_threaded": False,
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"version": [3, 11, 0]}, ""),
        ({"version": [3, 13, 9]}, ""),
        ({"version": [3, 10, 12]}, "Python 3.10.12"),
        ({"version": [3, 14, 0]}, "Python 3.14.0"),
        ({"implementation": "PyPy"}, "PyPy, not CPython"),
        ({"free_threaded": True}, "Python 3.12.3 without the GIL"),
        ({"platform": "linux-aarch64"}, "built for linux-aarch64"),
    ],
)
def test_judge_python(change: dict[str, t.Any], why: str) -> None:
    assert _env.judge_python({**FACTS, **change}) == why


def test_candidates_are_ordered_by_version_then_place() -> None:
    found = _env.python_candidates("/opt/bin:/usr/bin/:relative:", "/home/alice")
    assert found[:4] == [
        "/usr/bin/python3.11",
        "/usr/local/bin/python3.11",
        "/opt/bin/python3.11",
        "/home/alice/.local/bin/python3.11",
    ]
    assert found[-1] == "/home/alice/.local/bin/python3"
    assert len(found) == 16


def test_refusal_of_an_old_python_names_the_remedy() -> None:
    message = _env.no_python({"/usr/bin/python3": "Python 3.10.12"}, "", "alice").message()
    for part in ("/usr/bin/python3: Python 3.10.12", "apt install python3.11", "uv_env_python", "alice"):
        assert part in message


@pytest.mark.parametrize(
    ("system", "machine", "libc", "says"),
    [
        ("Linux", "x86_64", "glibc 2.28", ""),
        ("Linux", "x86_64", "glibc 2.27", "need glibc 2.28"),
        ("Linux", "x86_64", "", "not glibc"),
        ("Linux", "aarch64", "glibc 2.39", "Linux on aarch64"),
        ("Darwin", "x86_64", "", "Darwin on x86_64"),
    ],
)
def test_check_platform(system: str, machine: str, libc: str, says: str) -> None:
    if not says:
        _env.check_platform(system, machine, libc, {"torch": "2.8.0"})
        return
    with pytest.raises(FinetuneError, match=says):
        _env.check_platform(system, machine, libc, {"torch": "2.8.0"})


@pytest.mark.parametrize(
    ("gib", "lock", "warm", "fits"),
    [
        (9, {"torch": "2"}, False, True),
        (8.9, {"torch": "2"}, False, False),
        (1, {"torch": "2"}, True, True),
        (1, {"six": "1"}, False, True),
        (0.4, {"six": "1"}, False, False),
        (0.4, {"torch": "2"}, True, False),
    ],
)
def test_check_space(gib: float, lock: dict[str, str], warm: bool, fits: bool) -> None:
    if fits:
        _env.check_space(int(gib * _env.GIB), lock, warm, "/srv")
        return
    with pytest.raises(FinetuneError, match=r"needs .* GiB") as caught:
        _env.check_space(int(gib * _env.GIB), lock, warm, "/srv")
    assert "uv_env_root" in caught.value.message()


# --- what is installed ---


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """Lay a package out as an installer does."""
    info = f"{name}-{version}.dist-info"
    contents = {**files, f"{info}/METADATA": b"Name: x\n"}
    rows = []
    for path, content in contents.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(
            f'"{path}",sha256={digest},{len(content)}' if "," in path else f"{path},sha256={digest},{len(content)}"
        )
    rows += [f"{name}/__pycache__/x.cpython-311.pyc,,", f"{info}/RECORD,,"]
    (site / info / "RECORD").write_text("\n".join(rows) + "\n")


WANTED = {"one-two": "1.0", "three": "3.0"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = tmp_path / "lib" / "site-packages"
    install(
        place, "one_two", "1.0", {"one_two/a.py": b"a = 1\n", "one_two/b,c.py": b"b = 1\n", "../../bin/one": b"#!x\n"}
    )
    install(place, "three", "3.0", {"three.py": b"three = 3\n"})
    return place


def test_intact(site: Path) -> None:
    found = _env.inspect(str(site), WANTED, {})
    assert (found.damages, found.packages, sorted(found.seals)) == ([], WANTED, ["one-two", "three"])


def remove_info(site: Path) -> None:
    for path in (site / "three-3.0.dist-info").iterdir():
        path.unlink()
    (site / "three-3.0.dist-info").rmdir()


def other_version(site: Path) -> None:
    (site / "three-3.0.dist-info").rename(site / "three-3.1.dist-info")


@pytest.mark.parametrize(
    ("break_it", "kind", "says", "poisoned"),
    [
        (remove_info, "missing", "three 3.0 is not installed", False),
        (other_version, "version", "3.1 is installed, the lock has 3.0", False),
        (lambda s: install(s, "three", "2.0", {}), "version", "2.0 and 3.0 is installed", False),
        (lambda s: install(s, "four", "4.0", {}), "extra", "four 4.0 is installed but not in the lock", False),
        (lambda s: (s / "one_two" / "b,c.py").unlink(), "files", "one_two/b,c.py is missing", False),
        (lambda s: (s / "../../bin/one").unlink(), "files", "../../bin/one is missing", False),
        (lambda s: os.truncate(s / "three.py", 3), "files", "three.py has 3 bytes instead of 10", True),
        (lambda s: (s / "three.py").write_bytes(b"three = 4\n"), "files", "three.py was changed", True),
        (lambda s: (s / "three-3.0.dist-info/RECORD").write_text("three.py,,\n"), "files", "RECORD was changed", True),
        (lambda s: (s / "three-3.0.dist-info/RECORD").unlink(), "files", "RECORD is missing", True),
    ],
)
def test_damage_is_seen_and_named(
    site: Path, break_it: t.Callable[[Path], object], kind: str, says: str, poisoned: bool
) -> None:
    seals = _env.inspect(str(site), WANTED, {}).seals
    break_it(site)
    contents: tuple[_env.Content, ...] = ("unsealed", "all")
    for content in contents:
        damages = _env.inspect(str(site), WANTED, seals, content).damages
        assert [(damage.kind, damage.poisoned) for damage in damages] == [(kind, poisoned)]
        assert says in damages[0].sentence()


def test_damage_becomes_a_change() -> None:
    changes = [_env.Damage(kind, "x", "1", "").change("/e") for kind in ("missing", "extra", "version", "files")]
    assert [change["action"] for change in changes] == ["create", "remove", "update", "update"]
    assert changes[0]["path"] == "/e: x 1"


def test_a_touched_file_is_read_and_found_right(site: Path) -> None:
    seals = _env.inspect(str(site), WANTED, {}).seals
    os.utime(site / "three.py", (1, 1))
    found = _env.inspect(str(site), WANTED, seals)
    assert found.damages == []
    assert found.seals["three"] != seals["three"]


def test_content_is_read_only_when_the_seal_is_broken(site: Path) -> None:
    """A change that keeps size and time is what reading everything is for."""
    seals = _env.inspect(str(site), WANTED, {}).seals
    stat = (site / "three.py").stat()
    (site / "three.py").write_bytes(b"three = 4\n")
    os.utime(site / "three.py", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _env.inspect(str(site), WANTED, seals).damages == []
    assert _env.inspect(str(site), WANTED, {}, "none").damages == []
    readings: tuple[tuple[dict[str, dict[str, str]], _env.Content], ...] = ((seals, "all"), ({}, "unsealed"))
    for known, content in readings:
        found = _env.inspect(str(site), WANTED, known, content)
        assert [damage.sentence() for damage in found.damages] == ["three 3.0: three.py was changed"]
        assert "three" not in found.seals


# --- uv ---


def test_uv_sees_nobodys_settings() -> None:
    environ = {"UV_INDEX_URL": "x", "PIP_INDEX_URL": "x", "VIRTUAL_ENV": "x", "PYTHONPATH": "x", "https_proxy": "p"}
    got = _env.uv_environ(environ, "/r", "/home/a", "https://example.invalid/simple")
    assert not {"UV_INDEX_URL", "PIP_INDEX_URL", "VIRTUAL_ENV", "PYTHONPATH"} & set(got)
    assert (got["https_proxy"], got["HOME"], got["UV_CACHE_DIR"]) == ("p", "/home/a", "/r/cache/uv")
    assert (got["UV_NO_CONFIG"], got["UV_PYTHON_DOWNLOADS"]) == ("1", "never")
    assert got["UV_DEFAULT_INDEX"] == "https://example.invalid/simple"
    assert "UV_DEFAULT_INDEX" not in _env.uv_environ({}, "/r", "/home/a")


def test_sync_arguments() -> None:
    args = _env.sync_args("/uv", "/e", "/e/lock.txt", reinstall=["a"], find_links="/wheels", offline=True)
    command = "/uv pip sync --require-hashes --python /e/bin/python --reinstall-package a --find-links /wheels"
    assert " ".join(args) == f"{command} --offline --no-index /e/lock.txt"
    assert "--no-index" not in _env.sync_args("/uv", "/e", "l", offline=True)
    assert "--offline" not in _env.sync_args("/uv", "/e", "l", find_links="/wheels")


@pytest.mark.parametrize(
    ("stderr", "meaning", "remedy"),
    [
        ("cause: Hash mismatch for `six==1.17.0`\n  Expected: sha256:0", "hash", "uv_env_index_url"),
        ("cause: No space left on device (os error 28)", "disk is full", "uv_env_root"),
        (
            "Because idna was not found in the cache and …\nhint: the network was disabled",
            "may not be used",
            "uv_env_offline",
        ),
        ("Because idna was not found in the provided package locations", "may not be used", "uv_env_find_links"),
        ("cause: client error (Connect)\ncause: dns error", "cannot be reached", "uv_env_find_links"),
        ("cause: tcp connect error\ncause: Connection refused (os error 111)", "cannot be reached", "uv_env_index_url"),
        ("Because there is no version of idna==9 and …", "does not have a package", "uv_env_index_url"),
        ("Failed to build `x==1`\ncause: gcc failed", "could not be built", "compiler"),
        ("x has no wheels with a matching platform tag", "no wheel for this node", "uv_env_python"),
        ("something new", "uv failed", "uv's words"),
    ],
)
def test_failures_of_uv_are_explained(stderr: str, meaning: str, remedy: str) -> None:
    error = _env.explain_uv(stderr, "node-main")
    assert meaning in error.what
    assert remedy in error.change
    assert stderr.splitlines()[0] in error.change


def test_credentials_do_not_reach_messages() -> None:
    assert _env.strip_credentials("url (https://me:secret@example.invalid/simple/six/)") == (
        "url (https://***@example.invalid/simple/six/)"
    )
