# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWS, asked with boto3; what it refuses is told as errors.py has it.

Addresses are boto3's own: AWS_ENDPOINT_URL leads elsewhere. Credentials too: AWS_PROFILE, the environment, SSO, a role.
"""

from __future__ import annotations

import typing as t

from .._errors import FinetuneError
from . import errors

OPTIONS: dict[str, dict[str, t.Any]] = {
    "region": {"type": "str", "required": True},
    "profile": {"type": "str", "default": ""},
}

TRIES = 5
"""How often botocore asks again where AWS has no time, or does not answer."""


class Refused(FinetuneError):
    """AWS said no; `code` says why."""

    def __init__(self, told: FinetuneError, code: str, message: str) -> None:
        super().__init__(told.what, where=told.where, change=told.change)
        self.code = code
        self.told = message
        self.kind = errors.kind(code)


class Aws:
    """Clients of one region."""

    def __init__(self, region: str, profile: str = "") -> None:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise FinetuneError(
                "EC2 is asked with boto3, which this controller's Python lacks.",
                change="install boto3 beside ansible-core",
            ) from None
        self.region = region
        try:
            self.session = boto3.session.Session(region_name=region, profile_name=profile or None)
        except BotoCoreError as error:
            raise FinetuneError(f"{error}.", where="ec2_profile", change="name a profile of ~/.aws/config") from None
        self._clients: dict[tuple[str, str, int], t.Any] = {}

    def call(self, service: str, action: str, *, tries: int = 0, region: str = "", **asked: t.Any) -> dict[str, t.Any]:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError
        from botocore.parsers import ResponseParserError

        try:
            answer: dict[str, t.Any] = getattr(self._client(service, region or self.region, tries or TRIES), action)(
                **asked
            )
        except ClientError as error:
            said = error.response.get("Error", {})
            code, message = str(said.get("Code")), str(said.get("Message"))
            name = "".join(word.capitalize() for word in action.split("_"))
            raise Refused(errors.explained(code, message, name), code, message) from None
        except (NoCredentialsError, NoRegionError):
            raise FinetuneError(
                "There are no credentials for AWS.",
                where="AWS_PROFILE, AWS_ACCESS_KEY_ID",
                change="log in (aws sso login), or name a profile in ec2_profile",
            ) from None
        except (BotoCoreError, ResponseParserError, ValueError) as error:
            raise errors.unreachable(error, self.region) from None
        return answer

    def pages(self, service: str, action: str, key: str, **asked: t.Any) -> list[t.Any]:
        found: list[t.Any] = []
        token: dict[str, t.Any] = {}
        while True:
            answer = self.call(service, action, **asked, **token)
            found += answer.get(key) or []
            if not answer.get("NextToken"):
                return found
            token = {"NextToken": answer["NextToken"]}

    def _client(self, service: str, region: str, tries: int) -> t.Any:
        from botocore.config import Config

        key = (service, region, tries)
        if key not in self._clients:
            retries = {"mode": "standard", "total_max_attempts": tries}
            config = Config(connect_timeout=10, read_timeout=60, retries=retries)
            self._clients[key] = self.session.client(service, region_name=region, config=config)
        return self._clients[key]


def filters(**wanted: str | t.Sequence[str]) -> list[dict[str, t.Any]]:
    """filters(instance_type="g5.xlarge") and the like; a tag as tag__name."""
    return [
        {
            "Name": name.replace("tag__", "tag:") if name.startswith("tag__") else name.replace("_", "-"),
            "Values": [value] if isinstance(value, str) else list(value),
        }
        for name, value in wanted.items()
    ]
