# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an error of AWS means to a person: what is wrong, where, and what to change. Pure."""

from __future__ import annotations

import typing as t

from .._errors import FinetuneError


class Meaning(t.NamedTuple):
    kind: str
    what: str
    where: str
    change: str


_MEANINGS = (
    (
        Meaning("capacity", "AWS has no {type} to give in {zone} now", "ec2_instance_type", ""),
        (
            "InsufficientInstanceCapacity",
            "InsufficientHostCapacity",
            "InsufficientReservedInstanceCapacity",
            "InsufficientCapacity",
            "ReservationCapacityExceeded",
            "SpotMaxPriceTooLow",
            "Unsupported",
        ),
    ),
    (
        Meaning(
            "quota",
            "The account may not have that many",
            "Service Quotas",
            "ask for a raise (ec2_gpu_type_info tells quotas of types), or lower ec2_count; ec2_public_ip: 'off' takes "
            "no addresses",
        ),
        (
            "AddressLimitExceeded",
            "VcpuLimitExceeded",
            "InstanceLimitExceeded",
            "MaxSpotInstanceCountExceeded",
            "SpotInstanceCountExceeded",
        ),
    ),
    (
        Meaning(
            "credentials",
            "AWS does not take the credentials",
            "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN",
            "log in again (aws sso login), or correct them; what was begun goes on with the next apply",
        ),
        (
            "ExpiredToken",
            "ExpiredTokenException",
            "RequestExpired",
            "AuthFailure",
            "InvalidClientTokenId",
            "SignatureDoesNotMatch",
            "UnrecognizedClientException",
        ),
    ),
    (
        Meaning("permission", "These credentials may not do this", "the policy of who applies", "allow the action"),
        ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException"),
    ),
    (
        Meaning(
            "throttled",
            "AWS takes no more requests for now",
            "the account's rate of API requests",
            "apply again in a minute; what was begun goes on",
        ),
        ("RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException", "SlowDown"),
    ),
    (
        Meaning("region", "The account has not opted in to this region", "ec2_region", "opt in, or take another"),
        ("OptInRequired", "InvalidRegion"),
    ),
    (
        Meaning("image", "There is no such image in this region", "ec2_image_id and ec2_region", "correct one of them"),
        ("InvalidAMIID.NotFound", "InvalidAMIID.Malformed", "InvalidAMIID.Unavailable"),
    ),
    (
        Meaning(
            "type", "There is no such instance type in this region", "ec2_instance_type and ec2_region", "correct one"
        ),
        ("InvalidInstanceType",),
    ),
    (
        Meaning(
            "parameter", "There is no such image parameter", "ec2_image_parameter", "correct it, or give ec2_image_id"
        ),
        ("ParameterNotFound",),
    ),
    (
        Meaning("key", "There is no such key pair", "ec2_key_name", "correct it"),
        ("InvalidKeyPair.NotFound",),
    ),
    (
        Meaning(
            "network",
            "There is no such part of a network in this region",
            "ec2_subnet_ids, ec2_region",
            "correct one of them",
        ),
        (
            "InvalidSubnetID.NotFound",
            "InvalidSubnetId.Malformed",
            "InvalidGroup.NotFound",
            "InvalidPlacementGroup.Unknown",
        ),
    ),
    (
        Meaning("busy", "It is still in use", "", "apply again in a minute"),
        ("DependencyViolation", "InvalidPlacementGroup.InUse", "DeleteConflict"),
    ),
)
_BY_CODE = {code: meaning for meaning, codes in _MEANINGS for code in codes}


def kind(code: str) -> str:
    return _BY_CODE[code].kind if code in _BY_CODE else ""


def profile_unknown(code: str, message: str) -> bool:
    """EC2 sees a profile that was just made some seconds later."""
    return code == "InvalidParameterValue" and "IAM Instance Profile" in message


def explained(code: str, message: str, action: str, **names: str) -> FinetuneError:
    meaning = _BY_CODE.get(code)
    told = " ".join(message.split()).rstrip(".")
    if meaning is None:
        return FinetuneError(f"AWS refused {action}: {code}, {told}.", change="see what it says")
    what = meaning.what.format(**{"type": "such instance", "zone": "that zone", **names})
    return FinetuneError(f"{what} ({action}: {code}, {told}).", where=meaning.where, change=meaning.change)


def unreachable(error: object, region: str) -> FinetuneError:
    """No answer at all: most often a region that does not exist, whose name is part of the address."""
    told = " ".join(str(error).split())[:200]
    return FinetuneError(
        f"AWS cannot be asked: {told}.",
        where=f"ec2_region ({region}), AWS_PROFILE, AWS_ENDPOINT_URL",
        change="correct the name of the region, and see that this controller reaches AWS",
    )


def no_capacity(tried: t.Sequence[tuple[str, str, str]], kind_: str) -> FinetuneError:
    """tried: subnet, zone and AWS's own words."""
    lines = "; ".join(f"{zone or subnet}: {told}" for subnet, zone, told in tried)
    return FinetuneError(
        f"AWS has no {kind_} to give in any zone that was tried, and nothing was launched ({lines}).",
        where="ec2_instance_type, ec2_market, ec2_zones",
        change="apply again later, name more zones, another type, ec2_market, or a capacity block",
    )
