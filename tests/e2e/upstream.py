# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LLaMA-Factory's own parser as the judge: for each configuration on standard input, why it refuses it, or null.

Run with the Python of a node environment, as one rank of torchrun.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import typing as t

RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def main() -> None:
    configurations: list[dict[str, t.Any]] = json.load(sys.stdin)
    os.environ.update(RANK, MASTER_PORT=sys.argv[1], DS_ACCELERATOR="cpu", LLAMAFACTORY_VERBOSITY="ERROR")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    from accelerate.state import AcceleratorState
    from llamafactory.hparams import get_train_args

    refusals: list[str | None] = []
    with tempfile.TemporaryDirectory() as folder:
        for configuration in configurations:
            AcceleratorState._reset_state()
            try:
                get_train_args({"output_dir": folder, **configuration})
            except Exception as error:
                refusals.append(f"{type(error).__name__}: {error}"[:500])
            else:
                refusals.append(None)
    json.dump(refusals, answers)
    answers.close()


if __name__ == "__main__":
    main()
