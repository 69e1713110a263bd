# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a run is: its wish with what it begins with, and that as a request, whose digest is in its id."""

from __future__ import annotations

import typing as t
from dataclasses import replace

from . import _dataset, _media_send, _media_set, _origin, _request, _sent_model
from ._dataset import Source
from ._engine import base_model
from ._errors import FinetuneError
from ._wish.wish import ASKED, DEMO_MODEL, Wish

if t.TYPE_CHECKING:
    from ._ranks import Facts


class Identity(t.NamedTuple):
    id: str
    request: _request.Request
    wish: Wish
    """With what the run begins with, and without what does not count."""
    corpus: str
    """Digest of the text that the demo's model is made from."""
    model: _sent_model.Sent | None
    """That is sent from the controller."""
    media: dict[str, t.Any]
    """That its datasets bring along, as _media_send plans them."""


def find(
    wish: Wish,
    sources: t.Sequence[Source],
    facts: t.Mapping[str, Facts],
    *,
    corpus_digest: str,
    model: _sent_model.Sent | None = None,
    made: t.Mapping[str, dict[str, t.Any]] | None = None,
) -> Identity:
    """facts: of the hosts in rank order, of which the first knows the runs that this one may begin with; made: by name,
    runs that were planned before in the same play."""
    if not facts:
        raise FinetuneError(
            "There is no host to train on.", where="inventory, group trainers", change="add a host or widen --limit"
        )
    media = _media_send.plan(sources)
    wish = _origin.begin(wish, facts, made or {})
    if media:  # the run has a media_dir of its own; where its content came from does not count
        wish = replace(wish, args={key: value for key, value in wish.args.items() if key != "media_dir"})
    asked = request(wish, sources, corpus_digest, model)
    return Identity(_request.run_id(asked), asked, wish, corpus_digest, model, media)


def request(
    wish: Wish, sources: t.Sequence[Source], corpus_digest: str, sent: _sent_model.Sent | None = None
) -> _request.Request:
    """What the author wrote, datasets and a model that is sent by content, the embedded model by its recipe."""
    model: dict[str, t.Any] = {"name": wish.model, "revision": wish.model_revision}
    if wish.model == DEMO_MODEL:
        model = {"name": DEMO_MODEL, "recipe": base_model.identity(corpus_digest)}
    if sent:
        model = {"name": _sent_model.NAME, "digest": sent.digest}
    return {
        "name": wish.name,
        "recipe": wish.recipe,
        "args": wish.args,
        "model": model,
        "datasets": [_content(source) for source in sources if not source.evaluates],
        "eval_datasets": [_content(source) for source in sources if source.evaluates],
        "engine": wish.engine,
        "global_batch_size": wish.global_batch_size or "auto",
        "processes_per_node": wish.processes_per_node or "auto",
        **({"fit": wish.fit, "quantize": wish.quantizes} if wish.fit != ASKED else {}),
    }


def _content(source: Source) -> dict[str, t.Any]:
    return _dataset.identity(source.dataset, source.digest, _media_set.digest(source.media_files))
