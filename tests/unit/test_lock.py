# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lock asks for, on which Python."""

from __future__ import annotations

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _env, _lock, _markers
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


def test_a_lock_that_has_nothing_for_a_python_names_those_it_is_for() -> None:
    text = LOCK.replace("alpha==1.0", "alpha==1.0 ; python_full_version < '3.13'").replace(">= '3.12'", "== '3.12.*'")
    assert _lock.parse_lock(text, (3, 12, 1))
    with pytest.raises(FinetuneError, match="nothing for Python") as refusal:
        _lock.parse_lock(text, (3, 13, 2), "mine")
    assert "Python 3.11 or 3.12" in refusal.value.change and "uv_env_python" in refusal.value.change


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


@pytest.mark.parametrize(
    ("python", "beta"), [((3, 11), "2.1.post1"), ((3, 11, 9), "2.1.post1"), ((3, 12), "2.2"), ((3, 13, 1), "2.2")]
)
def test_parse_lock_evaluates_markers(python: tuple[int, ...], beta: str) -> None:
    assert _lock.parse_lock(LOCK, python) == {"alpha": "1.0", "beta": beta}


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
        _lock.parse_lock(text, (3, 11), "mine")


def test_refusal_names_file_and_line() -> None:
    with pytest.raises(FinetuneError) as caught:
        _lock.read_lock(f"alpha==1.0 \\\n  {HASH_A}\nbeta\n", "mine.txt")
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
    found = [name for name, version in patches.items() if _markers.holds(marker, _markers.target(version))]
    assert found == true_for.split()


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
        _markers.holds(marker, _markers.target((3, 11)))
