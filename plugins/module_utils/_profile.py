# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a run's environment, on the controller: the collection's for its profile, or one of the author's own."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass
from pathlib import Path

from . import _lock, _lookup, _recipe
from ._env import environment_digest
from ._errors import FinetuneError
from ._wish.wish import Wish

REQUIREMENTS = Path(__file__).absolute().parents[2] / "requirements"
_EMPTY = {"mcore-adapter": "0.0.1"}
"""What the public registry has under a name, and is none of it."""
DEEPER = ("uv_env_python", "uv_env_verify")
"""Variables of role uv_env by which it looks at more than what its build sealed."""


@dataclass(frozen=True)
class Profile:
    path: str
    """Of the lock; empty where there is none."""
    packages: dict[str, str]
    """Version by name of what it installs."""
    identity: dict[str, str]
    """Its name and digest, as a run records them."""


def lock_path(environment: str) -> Path:
    """The collection's lock of an environment profile."""
    return REQUIREMENTS / f"node-{environment}.txt"


def packages(text: str) -> dict[str, str]:
    """Version by name of what a lock installs. KTransformers' builds go by the names of what they stand for too."""
    versions = {line.name: line.version for line in _lock.read_lock(text)}
    return {**{name.removesuffix("-kt"): version for name, version in versions.items()}, **versions}


def find(environment: str, own: str, folders: t.Sequence[Path]) -> Profile:
    """The profile of an environment. own: train_lock; folders: where a relative one is looked for, in order."""
    if not own and environment in _recipe.UNLOCKED:
        return Profile("", {}, {"lock": f"node-{environment}", "digest": ""})
    path = _lookup.find(own, folders, "There", "train_lock", "correct it") if own else lock_path(environment)
    try:
        text = path.read_text(encoding="utf-8")
        found = Profile(str(path), packages(text), {"lock": path.stem, "digest": environment_digest(text)})
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"{path} cannot be read: {error}.", where="train_lock", change="correct it") from None
    if own:
        _refuse_other(environment, found)
    return found


def looked_for(profile: Profile, variables: t.Mapping[str, t.Any]) -> str:
    """Digest of the environment that nodes are to look for. Empty where uv_env is told to look deeper than they do: by
    its variables, of which one that is not set is None."""
    deeper = variables["uv_env_python"] or variables["uv_env_verify"] == "full"
    return "" if deeper else profile.identity["digest"]


def refuse_missing(wish: Wish) -> None:
    """A run that is to be there, in an environment without a lock. With assumed GPUs nothing comes of it anyway."""
    if wish.lock or wish.assumed or wish.environment not in _recipe.UNLOCKED or not wish.present:
        return
    raise FinetuneError(
        f"The collection has no lock for the environment node-{wish.environment}, which this run needs.",
        where="train_lock",
        change=f"name a hashed lock of yours with llamafactory {_recipe.LLAMAFACTORY[wish.environment]} and "
        f"{' and '.join(_recipe.UNLOCKED[wish.environment])} (wheels that no index has are found with "
        "uv_env_find_links); or choose another train_engine",
    )


def _refuse_other(environment: str, found: Profile) -> None:
    """A lock whose LLaMA-Factory takes other keys than were checked, or that lacks what the environment is for."""
    version = _recipe.LLAMAFACTORY[environment]
    wrong = [] if found.packages.get("llamafactory") == version else [f"llamafactory {version}"]
    for name in _recipe.UNLOCKED.get(environment, ()):
        if found.packages.get(name, _EMPTY.get(name)) == _EMPTY.get(name):
            wrong.append(name)
    if wrong:
        raise FinetuneError(
            f"The lock has no {' and no '.join(wrong)}, which this run needs.",
            where=f"train_lock, {found.path}",
            change="make it with them, by `uv pip compile --universal --generate-hashes`"
            + "; mcore-adapter 0.0.1 is empty, build it from its sources" * ("mcore-adapter" in wrong),
        )
