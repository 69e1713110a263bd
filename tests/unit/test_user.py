# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work done as the run's user: its answer, its refusal, its end."""

from __future__ import annotations

import os
import pwd
import signal
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _user
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

ROOT = os.geteuid() == 0
ME = _user.login()
OTHER = "nobody"


def refuse() -> dict[str, t.Any]:
    raise FinetuneError("No.", where="there", change="this")


def crash() -> dict[str, t.Any]:
    raise ValueError("something new")


def die() -> dict[str, t.Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def who() -> dict[str, t.Any]:
    return {"uid": os.getuid(), "groups": os.getgroups(), "home": os.environ["HOME"], "pid": os.getpid()}


def test_as_oneself_nothing_is_forked() -> None:
    assert _user.as_user(ME, who)["pid"] == os.getpid()


def test_as_another_user() -> None:
    """Root acts as the other for good, in a child; anybody else is refused."""
    if not ROOT:
        with pytest.raises(FinetuneError, match=f"cannot act as user {OTHER!r}"):
            _user.as_user(OTHER, who)
        return
    account = pwd.getpwnam(OTHER)
    did = _user.as_user(OTHER, who)
    assert (did["uid"], did["groups"], did["home"]) == (
        account.pw_uid,
        os.getgrouplist(OTHER, account.pw_gid),
        account.pw_dir,
    )
    assert did["pid"] != os.getpid() and os.geteuid() == 0


@pytest.mark.parametrize(
    ("work", "error", "says"),
    [
        (refuse, FinetuneError, "No.\n  where:  there\n  change: this"),
        (crash, RuntimeError, "ValueError: something new"),
        (lambda: {"not JSON": object()}, RuntimeError, "not JSON serializable"),
        (die, FinetuneError, "was killed"),
    ],
    ids=["refuse", "crash", "not-json", "die"],
)
def test_what_goes_wrong_there_is_told_here(
    work: t.Callable[[], dict[str, t.Any]], error: type[Exception], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if not ROOT:
        error, says = FinetuneError, "cannot act as user"
    with pytest.raises(error) as caught:
        _user.as_user(OTHER, work)
    assert says in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_nobody_of_that_name() -> None:
    with pytest.raises(FinetuneError, match="no user 'no-such-user'"):
        _user.as_user("no-such-user", who)


def test_what_only_predicts_needs_no_account_yet() -> None:
    assert _user.as_user("no-such-user", who, dry=True)["pid"] == os.getpid()
