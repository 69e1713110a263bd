# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet costs. Pure; prices come from AWS, else from the user, else from a dated catalogue."""

from __future__ import annotations

import json
import typing as t

from .._errors import FinetuneError

CATALOGUE_REGION = "us-east-1"
CATALOGUE_DATE = "2026-07-20"
CATALOGUE = {
    "g4dn.xlarge": 0.526, "g4dn.2xlarge": 0.752, "g4dn.4xlarge": 1.204, "g4dn.8xlarge": 2.176,
    "g4dn.12xlarge": 3.912, "g4dn.16xlarge": 4.352, "g4dn.metal": 7.824,
    "g5.xlarge": 1.006, "g5.2xlarge": 1.212, "g5.4xlarge": 1.624, "g5.8xlarge": 2.448,
    "g5.12xlarge": 5.672, "g5.16xlarge": 4.096, "g5.24xlarge": 8.144, "g5.48xlarge": 16.288,
    "g6.xlarge": 0.805, "g6.2xlarge": 0.978, "g6.4xlarge": 1.323, "g6.8xlarge": 2.014,
    "g6.12xlarge": 4.602, "g6.16xlarge": 3.397, "g6.24xlarge": 6.675, "g6.48xlarge": 13.350,
    "gr6.4xlarge": 1.539, "gr6.8xlarge": 2.446,
    "g6e.xlarge": 1.861, "g6e.2xlarge": 2.242, "g6e.4xlarge": 3.004, "g6e.8xlarge": 4.529,
    "g6e.12xlarge": 10.493, "g6e.16xlarge": 7.577, "g6e.24xlarge": 15.066, "g6e.48xlarge": 30.131,
    "g7.2xlarge": 2.520, "g7.4xlarge": 3.042, "g7.8xlarge": 4.086, "g7.12xlarge": 7.128,
    "g7.24xlarge": 14.257, "g7.48xlarge": 28.513,
    "g7e.2xlarge": 3.363, "g7e.4xlarge": 3.998, "g7e.8xlarge": 5.268, "g7e.12xlarge": 8.286,
    "g7e.24xlarge": 16.572, "g7e.48xlarge": 33.144,
    "p4d.24xlarge": 21.958, "p4de.24xlarge": 27.447, "p5.4xlarge": 6.880, "p5.48xlarge": 55.040,
    "p5en.48xlarge": 63.296, "p6-b200.48xlarge": 113.933, "p6-b300.48xlarge": 142.416,
}  # fmt: skip
"""USD an hour, Linux, on demand, as published for that region on that day."""


class Price(t.NamedTuple):
    usd: float
    """An hour of a node."""
    source: str


def on_demand(answers: t.Iterable[str]) -> float | None:
    """The hourly price in what the pricing API lists, which are documents in JSON."""
    for text in answers:
        for term in json.loads(text).get("terms", {}).get("OnDemand", {}).values():
            for dimension in term.get("priceDimensions", {}).values():
                usd = float(dimension.get("pricePerUnit", {}).get("USD") or 0)
                if dimension.get("unit") == "Hrs" and usd > 0:
                    return usd
    return None


def spot(history: t.Iterable[t.Mapping[str, t.Any]], zones: t.Collection[str]) -> float | None:
    """The highest of the newest prices in the zones that may be taken."""
    newest: dict[str, tuple[str, float]] = {}
    for entry in history:
        zone, when = str(entry["AvailabilityZone"]), str(entry["Timestamp"])
        if (not zones or zone in zones) and when >= newest.get(zone, ("", 0.0))[0]:
            newest[zone] = (when, float(entry["SpotPrice"]))
    return max((usd for _when, usd in newest.values()), default=None)


def choose(kind: str, market: str, region: str, given: float, asked: float | None) -> Price:
    """given: the user's figure, which wins; asked: AWS's, where it answered."""
    if market == "capacity-block":
        return Price(0.0, "a capacity block is paid already")
    if given:
        return Price(given, "ec2_price_usd")
    if asked is not None:
        return Price(asked, "AWS, spot, now" if market == "spot" else "AWS, list")
    if market == "on-demand" and region == CATALOGUE_REGION and kind in CATALOGUE:
        return Price(CATALOGUE[kind], f"list of {CATALOGUE_DATE}, as AWS did not tell")
    raise FinetuneError(
        f"What {kind} costs in {region} ({market}) is not known.",
        where="ec2_price_usd",
        change="give the price of a node in USD an hour, or allow pricing:GetProducts and ec2:DescribeSpotPriceHistory",
    )


def check(price: Price, nodes: int, most: float) -> float:
    hourly = price.usd * nodes
    if hourly > most:
        raise FinetuneError(
            f"{nodes} nodes cost {hourly:.2f} USD an hour ({price.usd:.3f} each, {price.source}); {most:g} is allowed.",
            where="ec2_max_hourly_usd",
            change="raise it, or take fewer or cheaper nodes",
        )
    return hourly
