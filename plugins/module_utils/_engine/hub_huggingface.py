# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of the Hugging Face hub, by its own client, whose environment variables say where it is and who asks.

The client is told to make plain requests: their files go on after a cut where they were.
"""

from __future__ import annotations

import concurrent.futures
import errno
import typing as t
from pathlib import Path

from .hub_files import Expected, Failure

TOGETHER = 4
"""Files at a time."""
LARGEST = 50 * 10**9
"""Bytes that a file may have to be had by plain requests; larger ones are on the hub by Xet alone."""
CHUNK = 1 << 16
"""Bytes of a file that a cut loses; the client would lose 10 MiB, and begin small files again."""


def listed(model: str, asked: str, revision: str) -> dict[str, Expected]:
    """All files of a commit."""
    return t.cast("dict[str, Expected]", _translated(lambda: _listed(model, revision)))


def download(model: str, asked: str, revision: str, folder: Path, names: t.Sequence[str], largest: int) -> None:
    from huggingface_hub import constants, hf_hub_download

    if largest < LARGEST:
        constants.HF_HUB_DISABLE_XET = True
        constants.HF_HUB_ENABLE_HF_TRANSFER = False
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK

    def one(name: str) -> None:
        _translated(lambda: hf_hub_download(model, name, revision=revision, local_dir=folder))

    with concurrent.futures.ThreadPoolExecutor(TOGETHER) as pool:
        started = [pool.submit(one, name) for name in names]
        try:
            for done in concurrent.futures.as_completed(started):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _listed(model: str, revision: str) -> dict[str, Expected]:
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=60).siblings or []
    return {
        file.rfilename: (file.size, file.lfs.sha256 if file.lfs else str(file.blob_id))
        for file in siblings
        if file.size is not None
    }


def _translated(work: t.Callable[[], t.Any]) -> t.Any:
    """What will not be otherwise the next time is a Failure; the rest goes through as it is."""
    from huggingface_hub import errors

    try:
        return work()
    except errors.GatedRepoError as error:
        raise Failure("gated", str(error)) from error
    except errors.RepositoryNotFoundError as error:
        raise Failure("missing", str(error)) from error
    except errors.LocalEntryNotFoundError:
        raise  # the hub did not answer
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise Failure("revision", str(error)) from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise Failure("gated", str(error)) from error
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failure("full", str(error)) from error
        raise
